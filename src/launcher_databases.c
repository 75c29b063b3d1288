/*-------------------------------------------------------------------------
 *
 * launcher_databases.c
 *	  What the launcher knows of pg_database, and the probes that look for the
 *	  extension.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/varlena.h"

#include "compat.h"
#include "launcher_private.h"

/* A row of pg_database */
typedef struct KnownDatabase
{
	Oid			oid;
	NameData	name;
	bool		connectable;	/* and no template */
	bool		probed;
	TimestampTz not_before;		/* when a probe that failed may be repeated */
} KnownDatabase;

static LaunchedWorker probe;
static KnownDatabase *known = NULL;
static int	nknown = 0;

static KnownDatabase *
find_known(KnownDatabase *list, int n, Oid oid)
{
	for (int i = 0; i < n; i++)
	{
		if (list[i].oid == oid)
			return &list[i];
	}
	return NULL;
}

/* Remembers which were probed */
void
databases_read(void)
{
	KnownDatabase *list = NULL;
	int			n = 0;
	int			allocated = 0;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);
		KnownDatabase *before;

		if (n == allocated)
		{
			allocated = Max(16, allocated * 2);
			list = list == NULL ?
				MemoryContextAlloc(TopMemoryContext, allocated * sizeof(KnownDatabase)) :
				repalloc(list, allocated * sizeof(KnownDatabase));
		}
		before = find_known(known, nknown, database->oid);
		list[n].oid = database->oid;
		list[n].name = database->datname;
		list[n].connectable = !database->datistemplate && database->datallowconn &&
			database->datconnlimit != OUTBOX_DATCONNLIMIT_INVALID;
		list[n].probed = before != NULL && before->probed;
		list[n].not_before = before != NULL ? before->not_before : 0;
		n++;
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();

	if (known != NULL)
		pfree(known);
	known = list;
	nknown = n;
}

bool
database_known(Oid oid)
{
	return find_known(known, nknown, oid) != NULL;
}

/* Is this database among those of outbox.databases? */
static bool
name_allowed(const char *name)
{
	char	   *copy;
	List	   *names;
	ListCell   *cell;
	bool		allowed = false;

	if (outbox_databases == NULL || outbox_databases[0] == '\0')
		return true;
	copy = pstrdup(outbox_databases);
	if (SplitIdentifierString(copy, ',', &names))
	{
		foreach(cell, names)
			allowed = allowed || strcmp((char *) lfirst(cell), name) == 0;
	}
	list_free(names);
	pfree(copy);
	return allowed;
}

bool
database_allowed(Oid oid)
{
	KnownDatabase *database = find_known(known, nknown, oid);

	return database != NULL && database->connectable && name_allowed(NameStr(database->name));
}

long
databases_probe(long timeout)
{
	TimestampTz now = GetCurrentTimestamp();
	WorkerArgs	args = {.kind = WORKER_PROBE, .count = 1};

	if (probe.handle != NULL)
	{
		KnownDatabase *database = find_known(known, nknown, probe.database);

		launched_reap(&probe, NULL);
		if (probe.handle != NULL)
			return timeout;
		launched_forgive(&probe);
		if (database != NULL)
		{
			database->probed = outbox_shared->probed == probe.database;
			database->not_before = TimestampTzPlusMilliseconds(now, LOOK_INTERVAL);
		}
	}
	if (probe.not_before > now)
		return launcher_sooner(timeout, probe.not_before);
	for (int i = 0; i < nknown; i++)
	{
		DatabaseSlot *slot = outbox_find_database(known[i].oid);

		if (known[i].probed || !known[i].connectable || known[i].not_before > now ||
			!name_allowed(NameStr(known[i].name)))
			continue;
		if (slot != NULL && slot->has_extension)
		{
			known[i].probed = true;
			continue;
		}
		outbox_shared->probed = InvalidOid;
		args.database = known[i].oid;
		launched_start(&probe, NULL, &args);
		if (probe.handle == NULL)
			return launcher_sooner(timeout, probe.not_before);
		break;
	}
	return timeout;
}

void
databases_forgive_probe(void)
{
	launched_forgive(&probe);
}
