/*-------------------------------------------------------------------------
 *
 * handler.c
 *	  Calling an SQL function on behalf of a role, in a consumer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "compat.h"
#include "handler.h"
#include "store.h"
#include "worker.h"

/* Longer texts of errors are cut */
#define ERROR_TEXT_MAX	10240

#define RETRY_DELAY_MIN	200
#define RETRY_DELAY_MAX	60000

/* The nest level of the settings of the present scope; 0: none */
static int	scope_level = 0;

/* Counts them: what was looked up of a function holds for one of them */
static uint64 scope_number = 0;

/* Some handler was called since the session was tidied last */
static bool session_used = false;

/* A handler has changed when constraints are checked, until the transaction ends */
static bool constraints_set = false;

/* When what the role runs now is to be cancelled; 0: it runs nothing */
static TimestampTz deadline = 0;

/* ---------------------------------------------------------------------
 * Settings
 * --------------------------------------------------------------------- */

/*
 * What a handler must not have: who it runs as is not for a setting to say, and
 * the others end the process at an error, or after a time.
 */
static const char *const kept_settings[] = {
	"role", "session_authorization", "exit_on_error", "transaction_timeout"
};

static void
apply_setting(const char *name, const char *value)
{
	for (int i = 0; i < lengthof(kept_settings); i++)
	{
		if (pg_strcasecmp(name, kept_settings[i]) == 0)
			return;
	}

	/* the transaction is the worker's */
	if (pg_strncasecmp(name, "transaction_", strlen("transaction_")) == 0)
		return;
	(void) set_config_option(name, value, PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, WARNING, false);
}

/* What ALTER ROLE ... SET gave the role, the more specific ones last */
static void
apply_role_settings(Oid role)
{
	static const Oid types[] = {OIDOID, OIDOID};
	Datum		values[2] = {ObjectIdGetDatum(role), ObjectIdGetDatum(MyDatabaseId)};
	uint64		n = store_execute("SELECT c.setting FROM pg_catalog.pg_db_role_setting AS s,"
								  " LATERAL pg_catalog.unnest(s.setconfig) AS c(setting)"
								  " WHERE s.setrole = $1 AND s.setdatabase IN (0, $2)"
								  " ORDER BY s.setdatabase", 2, types, values, NULL);
	char	  **settings = palloc(Max(n, 1) * sizeof(char *));

	for (uint64 i = 0; i < n; i++)
		settings[i] = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);

	scope_level = NewGUCNestLevel();
	worker_settings_reset();
	for (uint64 i = 0; i < n; i++)
	{
		char	   *name;
		char	   *value;

		ParseLongOption(settings[i], &name, &value);
		if (value != NULL)
			apply_setting(name, value);
	}
}

void
handler_scope_begin(const Handler *handler)
{
	session_used = true;
	constraints_set = false;
	scope_number++;
	apply_role_settings(handler->role);
}

/*
 * What handlers did must be as safe as what anybody does: with synchronous
 * replication nobody may see it, and the reply not be published, before the
 * standby has it.  What the worker does by itself can be repeated.
 */
static void
commit_as_others_do(void)
{
	static const char *const name = "synchronous_commit";

	(void) set_config_option(name, GetConfigOptionResetString(name), PGC_SUSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, WARNING, false);
}

/*
 * A temporary table would stand in front of the tables of the next role, a
 * cursor WITH HOLD would run its query at commit, and all of them would be in
 * the way of the next call that makes one of the same name.  No code of a user
 * runs when they are dropped.
 */
void
handler_drop_leftovers(void)
{
	PortalHashTableDeleteAll();
	DropAllPreparedStatements();

	/* what it deletes in the catalogs may have been toasted */
	PushActiveSnapshot(GetTransactionSnapshot());
	ResetTempTableNamespace();
	PopActiveSnapshot();
}

bool
handler_transaction_is_full(void)
{
	return MyProc->subxidStatus.overflowed || MyProc->subxidStatus.count >= HANDLER_CALLS_MAX;
}

void
handler_scope_end(void)
{
	AtEOXact_GUC(false, scope_level);
	scope_level = 0;
	handler_drop_leftovers();
	commit_as_others_do();
}

/* A cancellation that came too late must not meet somebody else */
static void
stop_timeout(void)
{
	disable_timeout(STATEMENT_TIMEOUT, false);
	QueryCancelPending = false;
	deadline = 0;
}

void
handler_tidy_session(void)
{
	if (!session_used)
		return;
	session_used = false;
	scope_level = 0;
	stop_timeout();
	DropAllPreparedStatements();
	LockReleaseSession(USER_LOCKMETHOD);
	ResetSequenceCaches();
}

/* ---------------------------------------------------------------------
 * Calling it
 * --------------------------------------------------------------------- */

/* What the role runs is between these two */
typedef struct RoleSwitch
{
	Oid			user;
	int			context;
	int			nest_level;
} RoleSwitch;

static void
become(const Handler *handler, RoleSwitch *saved)
{
	GetUserIdAndSecContext(&saved->user, &saved->context);
	saved->nest_level = NewGUCNestLevel();
	SetUserIdAndSecContext(handler->role,
						   saved->context | SECURITY_LOCAL_USERID_CHANGE);
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), handler->timeout);
	enable_timeout_at(STATEMENT_TIMEOUT, deadline);
}

/*
 * A function may catch its cancellation and go on.  What catches it is cancelled
 * at once again, outside of the block that did, until it runs out of blocks.
 */
static void
subtransaction_ended(SubXactEvent event, SubTransactionId subxact,
					 SubTransactionId parent, void *arg)
{
	if (event != SUBXACT_EVENT_ABORT_SUB || deadline == 0 ||
		GetCurrentTimestamp() < deadline)
		return;
	InterruptPending = true;
	QueryCancelPending = true;
}

static void
become_worker(const RoleSwitch *saved)
{
	stop_timeout();
	SetUserIdAndSecContext(saved->user, saved->context);
	AtEOXact_GUC(false, saved->nest_level);
}

void
handler_invoke(Handler *handler, Datum argument, HandlerOutcome *outcome)
{
	LOCAL_FCINFO(fcinfo, 1);
	RoleSwitch	saved;
	Datum		result;

	if (handler->looked_up != scope_number)
		fmgr_info_cxt(handler->oid, &handler->flinfo, TopTransactionContext);
	handler->looked_up = scope_number;
	InitFunctionCallInfoData(*fcinfo, &handler->flinfo, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = argument;
	fcinfo->args[0].isnull = false;

	become(handler, &saved);
	PushActiveSnapshot(GetTransactionSnapshot());
	result = FunctionCallInvoke(fcinfo);
	outcome->value = NULL;
	outcome->value_is_json = handler->result_type == JSONBOID ||
		handler->result_type == JSONOID;
	if (!fcinfo->isnull && handler->result_type != VOIDOID)
	{
		Oid			output;
		bool		varlena;

		getTypeOutputInfo(handler->result_type, &output, &varlena);
		outcome->value = OidOutputFunctionCall(output, result);
	}
	PopActiveSnapshot();
	become_worker(&saved);
	CommandCounterIncrement();
}

void
handler_fire_deferred(const Handler *handler)
{
	RoleSwitch	saved;

	become(handler, &saved);
	AfterTriggerFireDeferred();
	become_worker(&saved);
	CommandCounterIncrement();
}

PG_FUNCTION_INFO_V1(outbox_refuse_handlers);

/* outbox.refuse_handlers(function): raises within a handler */
Datum
outbox_refuse_handlers(PG_FUNCTION_ARGS)
{
	if (deadline != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s can't be called by a handler",
						text_to_cstring(PG_GETARG_TEXT_PP(0))),
				 errdetail("The positions of subscriptions are the consumer's while it runs.")));
	PG_RETURN_VOID();
}

void
handler_constraints_set(void)
{
	if (deadline != 0)
		constraints_set = true;
}

void
handler_check_constraints(void)
{
	if (constraints_set)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a handler has used SET CONSTRAINTS")));
}

void
handlers_init(void)
{
	RegisterSubXactCallback(subtransaction_ended, NULL);
	for (int i = 0; i < lengthof(kept_settings); i++)
	{
		struct config_generic *setting = outbox_find_setting(kept_settings[i]);

		if (setting != NULL)
			setting->flags |= GUC_NOT_WHILE_SEC_REST | GUC_NO_RESET_ALL;
	}
}

/* ---------------------------------------------------------------------
 * Isolation
 * --------------------------------------------------------------------- */

/* What has nothing to do with the record, and may be gone the next time */
static bool
is_transient(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_CONNECTION_EXCEPTION:	/* 08: dblink and foreign tables */
		case ERRCODE_INSUFFICIENT_RESOURCES:	/* 53: memory, disk, connections */
		case ERRCODE_OPERATOR_INTERVENTION: /* 57: timeout, cancel, shutdown */
		case ERRCODE_SYSTEM_ERROR:	/* 58: I/O */
			return true;
	}
	switch (sqlerrcode)
	{
		case ERRCODE_T_R_SERIALIZATION_FAILURE:
		case ERRCODE_T_R_DEADLOCK_DETECTED:
		case ERRCODE_LOCK_NOT_AVAILABLE:
		case ERRCODE_INTERNAL_ERROR:	/* nobody's answer, like the next two */
		case ERRCODE_DATA_CORRUPTED:
		case ERRCODE_INDEX_CORRUPTED:
			return true;
	}
	return false;
}

void
handler_note_error(HandlerOutcome *outcome, const ErrorData *error)
{
	const char *text = error->message ? error->message : "";
	int			len = pg_mbcliplen(text, strlen(text), ERROR_TEXT_MAX);

	outcome->verdict = is_transient(error->sqlerrcode) ?
		HANDLER_TRANSIENT : HANDLER_RAISED;
	outcome->value = NULL;
	strlcpy(outcome->sqlstate, unpack_sql_state(error->sqlerrcode),
			sizeof(outcome->sqlstate));
	outcome->error = pnstrdup(text, len);
}

void
handler_isolate(HandlerBody body, void *state, HandlerOutcome *outcome)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext scratch = AllocSetContextCreate(context, "outbox handler call",
												  ALLOCSET_DEFAULT_SIZES);
	ResourceOwner owner = CurrentResourceOwner;

	memset(outcome, 0, sizeof(HandlerOutcome));
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(scratch);
	PG_TRY();
	{
		body(state, outcome);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		stop_timeout();
		MemoryContextSwitchTo(scratch);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		handler_note_error(outcome, error);
	}
	PG_END_TRY();
	outcome->value = NULL;
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	MemoryContextDelete(scratch);

	/* fails where a trigger on a temporary table is deferred; see received.c */
	handler_drop_leftovers();
}

TimestampTz
handler_retry_at(int attempts)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
									   backoff_delay(attempts, RETRY_DELAY_MIN,
													 RETRY_DELAY_MAX));
}
