/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  What differs between the versions of PostgreSQL; every test of
 *	  PG_VERSION_NUM is here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_COMPAT_H
#define OUTBOX_COMPAT_H

#if PG_VERSION_NUM < 150000
#error "outbox needs PostgreSQL 15 or later"
#endif

#include "access/genam.h"
#include "access/tableam.h"
#include "access/tupdesc.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_database.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/inval.h"

/* Macros of varlena values moved out of postgres.h */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* This backend's place in an array of MaxBackends elements */
#if PG_VERSION_NUM >= 170000
#include "storage/procnumber.h"
#define outbox_backend_number() ((int) MyProcNumber)
#else
#include "storage/backendid.h"
#define outbox_backend_number() ((int) MyBackendId - 1)
#endif

/* The scan got an argument for EXPLAIN's counters */
#if PG_VERSION_NUM >= 180000
#define index_scan_begin(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0)
#else
#define index_scan_begin(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, nkeys, 0)
#endif

/* An access method may have something to finish after insertions */
#if PG_VERSION_NUM >= 170000
#define outbox_index_insert_cleanup(index, info) index_insert_cleanup(index, info)
#else
#define outbox_index_insert_cleanup(index, info) ((void) 0)
#endif

/* What an update of a row says of the indexes */
#if PG_VERSION_NUM >= 160000
typedef TU_UpdateIndexes OutboxUpdateIndexes;
#define outbox_indexes_need_update(indexes) ((indexes) == TU_All)
#else
typedef bool OutboxUpdateIndexes;
#define outbox_indexes_need_update(indexes) (indexes)
#endif

/* Virtual generated columns have no value in the row */
#ifdef ATTRIBUTE_GENERATED_VIRTUAL
#define outbox_attribute_is_virtual(att) \
	((att)->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
#else
#define outbox_attribute_is_virtual(att) false
#endif

/* The checks of ownership became one function */
#if PG_VERSION_NUM >= 160000
#define outbox_database_ownercheck(database, role) \
	object_ownercheck(DatabaseRelationId, database, role)
#else
#define outbox_database_ownercheck(database, role) \
	pg_database_ownercheck(database, role)
#endif

#if PG_VERSION_NUM >= 160000
#define outbox_may_execute(function, role) \
	(object_aclcheck(ProcedureRelationId, function, role, ACL_EXECUTE) == ACLCHECK_OK)
#define outbox_may_use_schema(schema, role) \
	(object_aclcheck(NamespaceRelationId, schema, role, ACL_USAGE) == ACLCHECK_OK)
#else
#define outbox_may_execute(function, role) \
	(pg_proc_aclcheck(function, role, ACL_EXECUTE) == ACLCHECK_OK)
#define outbox_may_use_schema(schema, role) \
	(pg_namespace_aclcheck(schema, role, ACL_USAGE) == ACLCHECK_OK)
#endif

/* "a.b" as a list of names */
#if PG_VERSION_NUM >= 160000
#define outbox_qualified_name(name) stringToQualifiedNameList(name, NULL)
#else
#define outbox_qualified_name(name) stringToQualifiedNameList(name)
#endif

/* All settings there are */
static inline struct config_generic **
outbox_settings(int *n)
{
#if PG_VERSION_NUM >= 160000
	return get_guc_variables(n);
#else
	*n = GetNumConfigOptions();
	return get_guc_variables();
#endif
}

/* A setting by its name, NULL if there is none */
static inline struct config_generic *
outbox_find_setting(const char *name)
{
#if PG_VERSION_NUM >= 160000
	return find_option(name, false, true, 0);
#else
	struct config_generic **settings = get_guc_variables();

	for (int i = 0; i < GetNumConfigOptions(); i++)
	{
		if (strcmp(settings[i]->name, name) == 0)
			return settings[i];
	}
	return NULL;
#endif
}

/* A database that DROP DATABASE left half-way; came with a minor release */
#ifdef DATCONNLIMIT_INVALID_DB
#define OUTBOX_DATCONNLIMIT_INVALID DATCONNLIMIT_INVALID_DB
#else
#define OUTBOX_DATCONNLIMIT_INVALID (-2)
#endif

/* The number of this session's transaction */
#if PG_VERSION_NUM >= 170000
#define outbox_local_xid() (MyProc->vxid.lxid)
#else
#define outbox_local_xid() (MyProc->lxid)
#endif

/* Before a declaration: the function doesn't return */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* What pg_stat_activity says that a worker waits for */
#if PG_VERSION_NUM >= 170000
#define outbox_wait_event(name) \
	({ static uint32 wait_event = 0; \
	   if (wait_event == 0) wait_event = WaitEventExtensionNew(name); \
	   wait_event; })
#else
#define outbox_wait_event(name) PG_WAIT_EXTENSION
#endif

/* A wait event set that lives until it is freed */
#if PG_VERSION_NUM >= 170000
#define outbox_create_wait_event_set(context, nevents) \
	CreateWaitEventSet(NULL, nevents)
#else
#define outbox_create_wait_event_set(context, nevents) \
	CreateWaitEventSet(context, nevents)
#endif

/* ConditionalLockDatabaseObject, which only late minor releases of 15 have */
static inline bool
outbox_conditional_lock_object(Oid classid, Oid objid, uint16 objsubid, LOCKMODE mode)
{
	LOCKTAG		tag;
	LockAcquireResult result;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, classid, objid, objsubid);
	result = LockAcquire(&tag, mode, false, true);
	if (result == LOCKACQUIRE_OK)
		AcceptInvalidationMessages();
	return result != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * The end of all WAL inserted so far, for XLogFlush.  GetXLogInsertRecPtr says
 * where the next record goes: at the start of a page that is behind the page's
 * header, which may not be written yet.
 */
static inline XLogRecPtr
outbox_insert_end_lsn(void)
{
#if PG_VERSION_NUM >= 190000
	return GetXLogInsertEndRecPtr();
#else
	XLogRecPtr	next = GetXLogInsertRecPtr();

	if (XLogSegmentOffset(next, wal_segment_size) == SizeOfXLogLongPHD)
		return next - SizeOfXLogLongPHD;
	if (next % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		return next - SizeOfXLogShortPHD;
	return next;
#endif
}

#endif							/* OUTBOX_COMPAT_H */
