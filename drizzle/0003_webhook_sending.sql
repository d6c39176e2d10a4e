ALTER TABLE "webhook_deliveries" ADD COLUMN "expires_at" timestamp(6) with time zone;--> statement-breakpoint
ALTER TABLE "webhook_endpoints" ADD COLUMN "disabled_reason" text;