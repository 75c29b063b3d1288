/*-------------------------------------------------------------------------
 *
 * hooks.c
 *	  Commands that the workers must make way for, or hear of.
 *
 * A worker is a session of its database, so DROP DATABASE and its kin would
 * wait for it and fail.  The workers end before such a command runs, and
 * start again when it is over, if the database is still there.
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
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "tcop/utility.h"

#include "announce.h"
#include "compat.h"
#include "hooks.h"
#include "launcher.h"

PG_FUNCTION_INFO_V1(outbox_check_preloaded);

static ProcessUtility_hook_type prev_ProcessUtility_hook = NULL;
static object_access_hook_type prev_object_access_hook = NULL;

/* This transaction ran the script of CREATE EXTENSION */
static bool extension_made = false;

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
	if (!OidIsValid(database) || database == MyDatabaseId ||
		outbox_find_database(database) == NULL ||
		!outbox_database_ownercheck(database, GetUserId()))
		return NULL;
	return name;
}

static void
release_callback(int code, Datum database)
{
	launcher_release(DatumGetObjectId(database));
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
	bool		creates = IsA(command, CreatedbStmt);
	bool		commits_prepared = IsA(command, TransactionStmt) &&
		((TransactionStmt *) command)->kind == TRANS_STMT_COMMIT_PREPARED;
	const char *name = database_in_the_way(command);

	if (name != NULL)
	{
		Oid			database = get_database_oid(name, false);

		/* also when the session is terminated while the command runs */
		PG_ENSURE_ERROR_CLEANUP(release_callback, ObjectIdGetDatum(database));
		{
			launcher_hold_off(database);
			run_utility(pstmt, queryString, readOnlyTree, context, params,
						queryEnv, dest, qc);
		}
		PG_END_ENSURE_ERROR_CLEANUP(release_callback, ObjectIdGetDatum(database));
		launcher_release(database);
	}
	else
		run_utility(pstmt, queryString, readOnlyTree, context, params,
					queryEnv, dest, qc);

	if (creates)
		launcher_look();		/* the template may have brought the extension */
	if (commits_prepared)
	{
		DatabaseSlot *slot = outbox_find_database(MyDatabaseId);

		if (slot == NULL || !slot->has_extension)
			launcher_extension_made(MyDatabaseId);
		announce_wake_now();
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
	if (!extension_made)
		return;
	if (event == XACT_EVENT_COMMIT)
		launcher_extension_made(MyDatabaseId);
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		extension_made = false;
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
