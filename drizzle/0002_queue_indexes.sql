DROP INDEX "runs_waiting";--> statement-breakpoint
DROP INDEX "runs_binding";--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "lease_length_ms" integer;--> statement-breakpoint
CREATE INDEX "runs_delayed" ON "runs" USING btree ("available_at") WHERE status = 'queued' and queue is not null and available_at is not null;--> statement-breakpoint
CREATE INDEX "runs_held" ON "runs" USING btree ("workspace_id","queue","reserved_until") WHERE worker_id is not null or reserved_until is not null;--> statement-breakpoint
CREATE INDEX "runs_waiting" ON "runs" USING btree ("workspace_id","queue","priority" DESC NULLS LAST,"key") WHERE status = 'queued' and queue is not null and available_at is null and reserved_until is null;--> statement-breakpoint
CREATE INDEX "runs_binding" ON "runs" USING btree ("key") WHERE status in ('starting', 'binding_session');