/*-------------------------------------------------------------------------
 *
 * hooks.c
 *	  Commands that the workers must make way for, or hear of.
 *
 * A worker is a session of its database, so DROP DATABASE and its kin would
 * wait for it and fail.  The workers end before such a command runs, and
 * start again when its transaction is over and everybody sees what became of
 * the database.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/memutils.h"

#include "announce.h"
#include "compat.h"
#include "handler.h"
#include "hooks.h"
#include "launcher.h"
#include "wait_for.h"

PG_FUNCTION_INFO_V1(outbox_check_preloaded);

static ProcessUtility_hook_type prev_ProcessUtility_hook = NULL;
static object_access_hook_type prev_object_access_hook = NULL;

/* What this transaction did: ran the script of CREATE EXTENSION, */
static bool extension_made = false;
/* changed pg_database, */
static bool databases_changed = false;
/* and keeps the workers of these databases away */
static List *held_off = NIL;

/*
 * The database that a command wants without sessions, NULL if it wants none
 * or its user may not run it: then the command says so itself, and nobody
 * has stopped anything.
 */
static const char *
database_in_the_way(Node *command)
{
	const char *name = NULL;
	Oid			database;

	if (IsA(command, DropdbStmt))
		name = ((DropdbStmt *) command)->dbname;
	else if (IsA(command, RenameStmt) &&
			 ((RenameStmt *) command)->renameType == OBJECT_DATABASE)
		name = ((RenameStmt *) command)->subname;
	else if (IsA(command, AlterDatabaseStmt) || IsA(command, CreatedbStmt))
	{
		bool		create = IsA(command, CreatedbStmt);
		List	   *options = create ? ((CreatedbStmt *) command)->options :
			((AlterDatabaseStmt *) command)->options;
		ListCell   *cell;

		foreach(cell, options)
		{
			DefElem    *option = (DefElem *) lfirst(cell);

			if (create && strcmp(option->defname, "template") == 0 && option->arg)
				name = defGetString(option);
			else if (!create && strcmp(option->defname, "tablespace") == 0)
				name = ((AlterDatabaseStmt *) command)->dbname;
		}
	}

	if (name == NULL)
		return NULL;
	database = get_database_oid(name, true);
	if (!OidIsValid(database) ||
		(database == MyDatabaseId && !IsA(command, CreatedbStmt)) ||
		outbox_find_database(database) == NULL ||
		!outbox_database_ownercheck(database, GetUserId()))
		return NULL;
	return name;
}

/* Before that it enters the database, so that its end releases it in any case */
static void
hold_off(const char *name)
{
	Oid			database = get_database_oid(name, false);
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

	held_off = lappend_oid(held_off, database);
	MemoryContextSwitchTo(old);
	launcher_hold_off(database);
}

static void
run_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
			ProcessUtilityContext context, ParamListInfo params,
			QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_ProcessUtility_hook)
		prev_ProcessUtility_hook(pstmt, queryString, readOnlyTree, context,
								 params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);
}

static void
outbox_ProcessUtility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
					  ProcessUtilityContext context, ParamListInfo params,
					  QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *command = pstmt->utilityStmt;
	bool		commits_prepared = IsA(command, TransactionStmt) &&
		((TransactionStmt *) command)->kind == TRANS_STMT_COMMIT_PREPARED;
	const char *name = database_in_the_way(command);

	if (name != NULL)
		hold_off(name);

	/* the template may bring the extension; a template has no workers */
	if (IsA(command, CreatedbStmt) || IsA(command, AlterDatabaseStmt))
		databases_changed = true;
	run_utility(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);

	if (IsA(command, ConstraintsSetStmt))
		handler_constraints_set();
	if (commits_prepared)
	{
		DatabaseSlot *slot;

		/* before an interrupt can come between: nobody would wake them later */
		wait_for_wake_all();
		slot = outbox_find_database(MyDatabaseId);
		if (OidIsValid(get_extension_oid(OUTBOX_EXTENSION, true)))
		{
			if (slot == NULL || !slot->has_extension)
				launcher_extension_made(MyDatabaseId);
			announce_wake_now();
		}
	}
}

/* An extension is dropped or altered: the workers look whether it was theirs */
static void
outbox_object_access(ObjectAccessType access, Oid classId, Oid objectId,
					 int subId, void *arg)
{
	if (prev_object_access_hook)
		prev_object_access_hook(access, classId, objectId, subId, arg);
	if (classId == ExtensionRelationId && access != OAT_POST_CREATE &&
		OidIsValid(MyDatabaseId) && outbox_find_database(MyDatabaseId) != NULL)
		announce_wake_at_commit();
}

static void
hooks_xact_callback(XactEvent event, void *arg)
{
	ListCell   *cell;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	if (extension_made && event == XACT_EVENT_COMMIT)
		launcher_extension_made(MyDatabaseId);
	if (databases_changed && event == XACT_EVENT_COMMIT)
		launcher_look();
	foreach(cell, held_off)
		launcher_release(lfirst_oid(cell));
	extension_made = databases_changed = false;
	held_off = NIL;				/* its memory goes with the transaction */
}

/*
 * Called by the script of CREATE EXTENSION, first of all: refuses where the
 * library isn't preloaded, and makes the commit start the workers.
 */
Datum
outbox_check_preloaded(PG_FUNCTION_ARGS)
{
	outbox_require_preloaded();
	(void) outbox_my_database();
	extension_made = true;
	PG_RETURN_VOID();
}

void
hooks_init(void)
{
	prev_ProcessUtility_hook = ProcessUtility_hook;
	ProcessUtility_hook = outbox_ProcessUtility;
	prev_object_access_hook = object_access_hook;
	object_access_hook = outbox_object_access;
	RegisterXactCallback(hooks_xact_callback, NULL);
}
