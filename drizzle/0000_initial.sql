CREATE TABLE "api_keys" (
	"id" uuid PRIMARY KEY NOT NULL,
	"workspace_id" uuid NOT NULL,
	"name" text NOT NULL,
	"role" text NOT NULL,
	"hash" "bytea" NOT NULL,
	"created_at" timestamp(6) with time zone DEFAULT now() NOT NULL,
	"revoked_at" timestamp(6) with time zone,
	CONSTRAINT "api_keys_hash_unique" UNIQUE("hash")
);
--> statement-breakpoint
CREATE TABLE "append_receipts" (
	"run_key" uuid NOT NULL,
	"request_key" text NOT NULL,
	"body_hash" "bytea" NOT NULL,
	"receipt" json NOT NULL,
	"created_at" timestamp(6) with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "append_receipts_run_key_request_key_pk" PRIMARY KEY("run_key","request_key")
);
--> statement-breakpoint
CREATE TABLE "producers" (
	"run_key" uuid NOT NULL,
	"producer_id" text NOT NULL,
	"epoch" bigint NOT NULL,
	"last_seq" bigint NOT NULL,
	"updated_at" timestamp(6) with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "producers_run_key_producer_id_pk" PRIMARY KEY("run_key","producer_id")
);
--> statement-breakpoint
CREATE TABLE "run_events_canonical" (
	"run_key" uuid NOT NULL,
	"seq" bigint NOT NULL,
	"ts" timestamp(6) with time zone NOT NULL,
	"type" text NOT NULL,
	"subject" text NOT NULL,
	"event" json NOT NULL,
	CONSTRAINT "run_events_canonical_run_key_seq_pk" PRIMARY KEY("run_key","seq")
);
--> statement-breakpoint
CREATE TABLE "run_events_raw" (
	"run_key" uuid NOT NULL,
	"raw_seq" bigint NOT NULL,
	"received_at" timestamp(6) with time zone NOT NULL,
	"first_seq" bigint NOT NULL,
	"seq_count" smallint NOT NULL,
	"format" text NOT NULL,
	"raw_type" text NOT NULL,
	"source" text NOT NULL,
	"event_id" text,
	"body" text NOT NULL,
	CONSTRAINT "run_events_raw_run_key_raw_seq_pk" PRIMARY KEY("run_key","raw_seq")
);
--> statement-breakpoint
CREATE TABLE "run_projections" (
	"run_key" uuid PRIMARY KEY NOT NULL,
	"version" bigint NOT NULL,
	"schema_version" integer NOT NULL,
	"state" json NOT NULL,
	"updated_at" timestamp(6) with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE TABLE "runs" (
	"key" uuid PRIMARY KEY NOT NULL,
	"workspace_id" uuid NOT NULL,
	"id" text NOT NULL,
	"name" text,
	"kind" text,
	"queue" text,
	"priority" integer DEFAULT 0 NOT NULL,
	"available_at" timestamp(6) with time zone,
	"max_attempts" integer,
	"lease_ms" integer,
	"parent_run_id" text,
	"input" json,
	"metadata" json,
	"tags" text[] DEFAULT '{}' NOT NULL,
	"descriptor" json,
	"request_hash" "bytea",
	"idempotency_key" text,
	"status" text NOT NULL,
	"progress" integer,
	"attempt" integer DEFAULT 1 NOT NULL,
	"error" json,
	"last_seq" bigint DEFAULT 0 NOT NULL,
	"last_raw_seq" bigint DEFAULT 0 NOT NULL,
	"first_seq" bigint DEFAULT 1 NOT NULL,
	"created_at" timestamp(6) with time zone NOT NULL,
	"updated_at" timestamp(6) with time zone NOT NULL,
	"started_at" timestamp(6) with time zone,
	"ended_at" timestamp(6) with time zone,
	"archived_at" timestamp(6) with time zone
);
--> statement-breakpoint
CREATE TABLE "workspaces" (
	"id" uuid PRIMARY KEY NOT NULL,
	"name" text NOT NULL,
	"created_at" timestamp(6) with time zone DEFAULT now() NOT NULL,
	CONSTRAINT "workspaces_name_unique" UNIQUE("name")
);
--> statement-breakpoint
ALTER TABLE "api_keys" ADD CONSTRAINT "api_keys_workspace_id_workspaces_id_fk" FOREIGN KEY ("workspace_id") REFERENCES "public"."workspaces"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "runs" ADD CONSTRAINT "runs_workspace_id_workspaces_id_fk" FOREIGN KEY ("workspace_id") REFERENCES "public"."workspaces"("id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE UNIQUE INDEX "run_events_raw_event_id" ON "run_events_raw" USING btree ("run_key","source","event_id") WHERE event_id is not null;--> statement-breakpoint
CREATE UNIQUE INDEX "runs_workspace_id" ON "runs" USING btree ("workspace_id","id");--> statement-breakpoint
CREATE UNIQUE INDEX "runs_idempotency_key" ON "runs" USING btree ("workspace_id","idempotency_key") WHERE idempotency_key is not null;--> statement-breakpoint
CREATE INDEX "runs_created" ON "runs" USING btree ("workspace_id","created_at","key");--> statement-breakpoint
INSERT INTO "workspaces" ("id", "name") VALUES ('00000000-0000-7000-8000-000000000001', 'default');
