CREATE TABLE "cancel_callbacks" (
	"run_key" uuid PRIMARY KEY NOT NULL,
	"requested_at" timestamp(6) with time zone NOT NULL,
	"attempts" integer DEFAULT 0 NOT NULL,
	"next_at" timestamp(6) with time zone DEFAULT now() NOT NULL,
	"ended_at" timestamp(6) with time zone,
	"error" text
);
--> statement-breakpoint
CREATE INDEX "cancel_callbacks_due" ON "cancel_callbacks" USING btree ("next_at") WHERE ended_at is null;