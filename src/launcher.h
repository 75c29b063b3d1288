/*-------------------------------------------------------------------------
 *
 * launcher.h
 *	  The process that keeps the workers of every database running.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_LAUNCHER_H
#define OUTBOX_LAUNCHER_H

#include "outbox.h"

/* Handed to a worker in bgw_extra */
typedef struct WorkerArgs
{
	Oid			database;
	WorkerKind	kind;
	int			number;			/* among those of its kind, from 0 */
	int			count;			/* how many of them share the work */
} WorkerArgs;

/* Registers the launcher with the postmaster; from _PG_init */
extern void launcher_register(void);

/*
 * Says that a database may have the extension now.  Any process; never
 * raises.  The workers find out whether it is so.
 */
extern void launcher_extension_made(Oid database);

/* Makes the launcher read pg_database again.  Any process; never raises. */
extern void launcher_look(void);

/*
 * Ends the workers of a database and keeps them away until
 * launcher_release.  Waits for them, 5 seconds at most.
 */
extern void launcher_hold_off(Oid database);
extern void launcher_release(Oid database);

extern PGDLLEXPORT void outbox_launcher_main(Datum arg);

#endif							/* OUTBOX_LAUNCHER_H */
