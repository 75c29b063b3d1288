/*-------------------------------------------------------------------------
 *
 * sweep.h
 *	  How far the publish sweep has come, and where it must go back to.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SWEEP_H
#define OUTBOX_SWEEP_H

#include "announce.h"
#include "message_id.h"
#include "outbox.h"
#include "utils/snapshot.h"

typedef struct Sweep
{
	/* everything below was published, is held, or lies in "open" */
	MessageClock position[OUTBOX_SWEPT_LANES];
	MessageClock saved[OUTBOX_SWEPT_LANES]; /* what outbox.lane says */
	bool		mine[OUTBOX_SWEPT_LANES];	/* lanes this publisher has locked */
	MessageClock passed;		/* the recovery sweep may have come so far */
	MessageClock in_flight;		/* what is being delivered begins there;
								 * PG_UINT64_MAX if nothing is */

	/* transactions that were open when the last pass read the announcements */
	OpenTransaction *open;
	int			nopen;
	OpenTransaction *scratch;

	MessageClock clock;			/* as the current pass read it */
	TimestampTz started_at;		/* before it read the announcements */
} Sweep;

/*
 * Reads the lanes' cursors, locking the lanes of publisher i of n.  False if
 * somebody else still has one of them.
 */
extern bool sweep_load(Sweep *sweep, Oid extension, int publisher, int publishers);

/* Reads anew how far the other publishers have come; needs SPI */
extern void sweep_read_others(Sweep *sweep);

/* Is the lane one of this publisher's? */
extern bool sweep_has_lane(const Sweep *sweep, int lane);

/*
 * True if a message of this publisher's that is SENT now lies where the
 * recovery sweep may not come by again, so that it must be scheduled.
 */
extern bool sweep_has_passed(const Sweep *sweep, MessageClock clock);

/*
 * Begins a pass: reads the clock, then the announcements, and goes back for
 * the transactions that have ended since.  The caller takes its snapshot
 * afterwards and shows it to sweep_see.
 */
extern void sweep_begin_pass(Sweep *sweep);

/* Goes back for the announced transactions that have ended in this snapshot */
extern void sweep_see(Sweep *sweep, Snapshot snapshot);

/* Is a row of that lane and clock one to look at in this pass? */
extern bool sweep_wants(const Sweep *sweep, int lane, MessageClock clock);

/*
 * Ends a pass: everything below upto was looked at, and all of it if upto is
 * the pass's own clock.
 */
extern void sweep_end_pass(Sweep *sweep, MessageClock upto);

/* The next pass begins there, at the latest */
extern void sweep_go_back(Sweep *sweep, MessageClock clock);

/* Lowest and highest position of this publisher's lanes */
extern MessageClock sweep_lowest(const Sweep *sweep);
extern MessageClock sweep_highest(const Sweep *sweep);

/*
 * Below this no transaction is open and all was looked at: by this publisher,
 * or as outbox.lane has it of the others' lanes.
 */
extern MessageClock sweep_safe(const Sweep *sweep);

/*
 * Goes back for prepared transactions that have committed in the active
 * snapshot, which is that of the scan; needs SPI.  True if there were any.
 */
extern bool sweep_read_prepared(Sweep *sweep);

/* Writes the cursors; needs SPI.  The marks of held topics go with them. */
extern void sweep_save(Sweep *sweep);

#endif							/* OUTBOX_SWEEP_H */
