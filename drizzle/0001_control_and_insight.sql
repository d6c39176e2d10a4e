CREATE TABLE "artifacts" (
	"workspace_id" uuid NOT NULL,
	"sha256" text NOT NULL,
	"bytes" bigint NOT NULL,
	"media_type" text NOT NULL,
	"content" "bytea",
	"created_at" timestamp(6) with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "artifacts_workspace_id_sha256_pk" PRIMARY KEY("workspace_id","sha256")
);
--> statement-breakpoint
CREATE TABLE "audit_log" (
	"id" uuid PRIMARY KEY NOT NULL,
	"workspace_id" uuid NOT NULL,
	"at" timestamp(6) with time zone DEFAULT now() NOT NULL,
	"actor" text NOT NULL,
	"actor_key_id" text,
	"action" text NOT NULL,
	"target_kind" text NOT NULL,
	"target_id" text,
	"request_id" text,
	"outcome" text NOT NULL,
	"detail" json
);
--> statement-breakpoint
CREATE TABLE "export_jobs" (
	"id" uuid PRIMARY KEY NOT NULL,
	"workspace_id" uuid NOT NULL,
	"request" json NOT NULL,
	"status" text NOT NULL,
	"runs_total" integer,
	"runs_done" integer DEFAULT 0 NOT NULL,
	"bytes" bigint,
	"error" text,
	"owner_id" uuid,
	"owner_expires_at" timestamp(6) with time zone,
	"created_at" timestamp(6) with time zone DEFAULT now() NOT NULL,
	"ended_at" timestamp(6) with time zone,
	"expires_at" timestamp(6) with time zone
);
--> statement-breakpoint
CREATE TABLE "queues" (
	"workspace_id" uuid NOT NULL,
	"name" text NOT NULL,
	"concurrency" integer,
	"key_concurrency" integer,
	"paused" boolean DEFAULT false NOT NULL,
	"updated_at" timestamp(6) with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "queues_workspace_id_name_pk" PRIMARY KEY("workspace_id","name")
);
--> statement-breakpoint
CREATE TABLE "run_artifacts" (
	"run_key" uuid NOT NULL,
	"sha256" text NOT NULL,
	CONSTRAINT "run_artifacts_run_key_sha256_pk" PRIMARY KEY("run_key","sha256")
);
--> statement-breakpoint
CREATE TABLE "run_checkpoints" (
	"run_key" uuid NOT NULL,
	"seq" bigint NOT NULL,
	"schema_version" integer NOT NULL,
	"state" json NOT NULL,
	CONSTRAINT "run_checkpoints_run_key_seq_pk" PRIMARY KEY("run_key","seq")
);
--> statement-breakpoint
CREATE TABLE "run_deletions" (
	"run_key" uuid PRIMARY KEY NOT NULL,
	"workspace_id" uuid NOT NULL,
	"run_id" text NOT NULL,
	"due_at" timestamp(6) with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE TABLE "run_sources" (
	"run_key" uuid PRIMARY KEY NOT NULL,
	"workspace_id" uuid NOT NULL,
	"config" json NOT NULL,
	"status" text NOT NULL,
	"cursor" text,
	"owner_id" uuid,
	"owner_expires_at" timestamp(6) with time zone,
	"failures" integer DEFAULT 0 NOT NULL,
	"next_at" timestamp(6) with time zone DEFAULT now() NOT NULL,
	"error" text,
	"created_at" timestamp(6) with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE TABLE "service_secrets" (
	"name" text PRIMARY KEY NOT NULL,
	"value" "bytea" NOT NULL
);
--> statement-breakpoint
CREATE TABLE "webhook_deliveries" (
	"id" uuid PRIMARY KEY NOT NULL,
	"endpoint_id" uuid NOT NULL,
	"workspace_id" uuid NOT NULL,
	"run_key" uuid NOT NULL,
	"run_id" text NOT NULL,
	"seq" bigint NOT NULL,
	"type" text NOT NULL,
	"status" text NOT NULL,
	"attempts" integer DEFAULT 0 NOT NULL,
	"next_at" timestamp(6) with time zone NOT NULL,
	"locked_until" timestamp(6) with time zone,
	"last_status" integer,
	"last_error" text,
	"last_answer" text,
	"created_at" timestamp(6) with time zone NOT NULL,
	"ended_at" timestamp(6) with time zone
);
--> statement-breakpoint
CREATE TABLE "webhook_endpoints" (
	"id" uuid PRIMARY KEY NOT NULL,
	"workspace_id" uuid NOT NULL,
	"url" text NOT NULL,
	"description" text,
	"types" text[] NOT NULL,
	"secrets" json NOT NULL,
	"enabled" boolean DEFAULT true NOT NULL,
	"created_at" timestamp(6) with time zone DEFAULT now() NOT NULL,
	"updated_at" timestamp(6) with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
ALTER TABLE "run_events_canonical" ADD COLUMN "shape" bigint;--> statement-breakpoint
ALTER TABLE "run_events_canonical" ADD COLUMN "content" bigint;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "first_raw_seq" bigint DEFAULT 1 NOT NULL;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "input_tokens" bigint DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "output_tokens" bigint DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "cost_usd" double precision DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "llm_calls" integer DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "tool_calls" integer DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "error_count" integer DEFAULT 0 NOT NULL;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "model_usage" json;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "concurrency_key" text;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "worker_id" text;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "lease_expires_at" timestamp(6) with time zone;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "lease_remaining_ms" bigint;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "reserved_until" timestamp(6) with time zone;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "ttl_expires_at" timestamp(6) with time zone;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "ttl_remaining_ms" bigint;--> statement-breakpoint
ALTER TABLE "runs" ADD COLUMN "cancel_requested_at" timestamp(6) with time zone;--> statement-breakpoint
ALTER TABLE "webhook_endpoints" ADD CONSTRAINT "webhook_endpoints_workspace_id_workspaces_id_fk" FOREIGN KEY ("workspace_id") REFERENCES "public"."workspaces"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "audit_log_workspace" ON "audit_log" USING btree ("workspace_id","id");--> statement-breakpoint
CREATE INDEX "export_jobs_workspace" ON "export_jobs" USING btree ("workspace_id","id");--> statement-breakpoint
CREATE INDEX "run_artifacts_content" ON "run_artifacts" USING btree ("sha256");--> statement-breakpoint
CREATE INDEX "run_sources_due" ON "run_sources" USING btree ("next_at") WHERE status in ('waiting', 'reading');--> statement-breakpoint
CREATE INDEX "webhook_deliveries_pending" ON "webhook_deliveries" USING btree ("endpoint_id","run_key","seq") WHERE status = 'pending';--> statement-breakpoint
CREATE INDEX "webhook_deliveries_due" ON "webhook_deliveries" USING btree ("next_at") WHERE status = 'pending';--> statement-breakpoint
CREATE INDEX "webhook_deliveries_endpoint" ON "webhook_deliveries" USING btree ("endpoint_id","id");--> statement-breakpoint
CREATE INDEX "webhook_endpoints_workspace" ON "webhook_endpoints" USING btree ("workspace_id");--> statement-breakpoint
CREATE INDEX "runs_waiting" ON "runs" USING btree ("workspace_id","queue","priority" DESC NULLS LAST,"key") WHERE status = 'queued' and queue is not null;--> statement-breakpoint
CREATE INDEX "runs_leased" ON "runs" USING btree ("lease_expires_at") WHERE lease_expires_at is not null;--> statement-breakpoint
CREATE INDEX "runs_ttl" ON "runs" USING btree ("ttl_expires_at") WHERE ttl_expires_at is not null;--> statement-breakpoint
CREATE INDEX "runs_cancelling" ON "runs" USING btree ("cancel_requested_at") WHERE cancel_requested_at is not null;--> statement-breakpoint
CREATE INDEX "runs_binding" ON "runs" USING btree ("updated_at") WHERE status in ('starting', 'binding_session');