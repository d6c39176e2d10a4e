CREATE TABLE "run_bases" (
	"run_key" uuid PRIMARY KEY NOT NULL,
	"seq" bigint NOT NULL,
	"schema_version" integer NOT NULL,
	"state" json NOT NULL
);
--> statement-breakpoint
CREATE INDEX "audit_log_target" ON "audit_log" USING btree ("workspace_id","target_id","id");--> statement-breakpoint
CREATE INDEX "webhook_deliveries_run" ON "webhook_deliveries" USING btree ("run_key");