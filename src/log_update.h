/*-------------------------------------------------------------------------
 *
 * log_update.h
 *	  Changing the status of messages at the places where they were read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_LOG_UPDATE_H
#define OUTBOX_LOG_UPDATE_H

#include "storage/itemptr.h"
#include "store.h"

/*
 * Makes a change, not to NEW, in one segment of the log, where places says
 * for each of the ascending ids where its row was; an invalid one says nothing.
 * Sets hit for those that it changed, and returns how many these are.  A row
 * that isn't there any more is left to a statement that looks for it, as all
 * are where updates of the table fire triggers, or it has indexes that aren't
 * ours.
 *
 * In a worker's transaction; takes RowExclusiveLock on the segment, and waits
 * for whoever is changing one of the rows.
 */
extern int	log_update_status(int segment, const pg_uuid_t *ids,
							  const ItemPointerData *places, int n,
							  const StatusChange *change, TimestampTz now, bool *hit);

#endif							/* OUTBOX_LOG_UPDATE_H */
