/*-------------------------------------------------------------------------
 *
 * launcher_private.h
 *	  What the files of the launcher share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_LAUNCHER_PRIVATE_H
#define OUTBOX_LAUNCHER_PRIVATE_H

#include "postmaster/bgworker.h"

#include "launcher.h"

/* pg_database is read again this often, whoever says so or not (ms) */
#define LOOK_INTERVAL		60000

/* A worker that the launcher started, or is to start again */
typedef struct LaunchedWorker
{
	Oid			database;
	BackgroundWorkerHandle *handle; /* NULL: not running */
	int			failures;		/* in a row */
	TimestampTz started_at;
	TimestampTz not_before;
} LaunchedWorker;

/*
 * Starts a worker; launch->handle stays NULL if it can't be.  A probe has no
 * slot.
 */
extern void launched_start(LaunchedWorker *launch, WorkerSlot *slot, const WorkerArgs *args);

/* Notices that a worker has ended, and decides when it may start again */
extern void launched_reap(LaunchedWorker *launch, WorkerSlot *slot);

/* It may start again at once */
extern void launched_forgive(LaunchedWorker *launch);

/* Milliseconds until a moment, at least 1, at most the given ones */
extern long launcher_sooner(long timeout, TimestampTz moment);

/* Reads pg_database */
extern void databases_read(void);

/* Is it in what was read? */
extern bool database_known(Oid oid);

/* May it have workers: can one connect to it, does outbox.databases allow it? */
extern bool database_allowed(Oid oid);

/*
 * Lets one probe at a time look into the databases not looked into yet; returns
 * in how many milliseconds to call it again, at most timeout.
 */
extern long databases_probe(long timeout);

/* A probe that failed may be repeated at once */
extern void databases_forgive_probe(void);

#endif							/* OUTBOX_LAUNCHER_PRIVATE_H */
