/*-------------------------------------------------------------------------
 *
 * worker_settings.c
 *	  The settings of a worker's session, and those of what it runs for others.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_db_role_setting.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "worker.h"

/* A session of our own: nothing a DBA set for others may reach into it */
static const char *const session_settings[][2] = {
	{"search_path", "pg_catalog, pg_temp"},
	{"statement_timeout", "0"},
	{"lock_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},
	{"idle_session_timeout", "0"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_read_only", "off"},
	{"default_transaction_deferrable", "off"},
	{"row_security", "off"},
	{"zero_damaged_pages", "off"},
	/* marks need the local disk, and never a standby */
	{"synchronous_commit", "local"},
	{"jit", "off"},
	{"plan_cache_mode", "force_generic_plan"},
	/* all that a worker reads, it reads by primary key */
	{"enable_indexscan", "on"},
	{"enable_nestloop", "on"},
	{"enable_seqscan", "off"},
	{"enable_bitmapscan", "off"},
	{"enable_hashjoin", "off"},
	{"enable_mergejoin", "off"},
	{"enable_material", "off"},
	{"max_parallel_workers_per_gather", "0"},
	{"transaction_timeout", "0"},
};

/* As SET does, so that what they would be otherwise stays known */
/*
 * A worker's session begins as the superuser that initdb made.  What ALTER ROLE
 * gave that one is not for the handlers of others, nor for the worker.
 */
static void
forget_user_settings(void)
{
	int			n;
	struct config_generic **settings = outbox_settings(&n);
	Relation	table;
	bool		any = false;

	for (int i = 0; i < n; i++)
	{
		struct config_generic *setting = settings[i];

		if (setting->reset_source != PGC_S_USER &&
			setting->reset_source != PGC_S_DATABASE_USER)
			continue;
		setting->source = setting->reset_source = PGC_S_DEFAULT;
		(void) set_config_option(setting->name, NULL, PGC_SUSET, PGC_S_DEFAULT,
								 GUC_ACTION_SET, true, DEBUG1, false);
		any = true;
	}
	if (!any)
		return;

	/* what else there is to say of them */
	ProcessConfigFile(PGC_SIGHUP);
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	table = table_open(DbRoleSettingRelationId, AccessShareLock);
	ApplySetting(GetActiveSnapshot(), MyDatabaseId, InvalidOid, table, PGC_S_DATABASE);
	table_close(table, AccessShareLock);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

void
worker_settings_init(void)
{
	forget_user_settings();
	for (int i = 0; i < lengthof(session_settings); i++)
	{
		if (GetConfigOption(session_settings[i][0], true, false) != NULL)
			(void) set_config_option(session_settings[i][0], session_settings[i][1],
									 PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SET, true, 0,
									 false);
	}
}

void
worker_settings_reset(void)
{
	for (int i = 0; i < lengthof(session_settings); i++)
	{
		const char *name = session_settings[i][0];

		/* the transaction is the worker's, and so is its timeout */
		if (strcmp(name, "transaction_timeout") == 0)
			continue;
		(void) set_config_option(name, GetConfigOptionResetString(name), PGC_SUSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, WARNING, false);
	}
}

int
worker_settings_begin(void)
{
	int			level = NewGUCNestLevel();

	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_SUSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return level;
}

void
worker_settings_end(int nest_level)
{
	AtEOXact_GUC(false, nest_level);
}
