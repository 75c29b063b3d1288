/*-------------------------------------------------------------------------
 *
 * worker_settings.c
 *	  The settings of a worker's session, and those of what it runs for others.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/guc.h"

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
void
worker_settings_init(void)
{
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
