/*-------------------------------------------------------------------------
 *
 * bridge_private.h
 *	  What bridge.c and bridge_event.c share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_BRIDGE_PRIVATE_H
#define OUTBOX_BRIDGE_PRIVATE_H

#include "bridge.h"
#include "bridge/frame.h"
#include "bridge/protocol.h"

struct Bridge
{
	MemoryContext context;
	pid_t		pid;			/* 0 once reaped */
	pgsocket	sock;
	BridgeRole	role;
	bool		ready;
	bool		closed;			/* the socket has come to its end */
	bool		hung;			/* it was killed: no answer to a ping */
	bool		dead;			/* BRIDGE_DIED was handed out */
	char		version[64];
	char		text[1200];		/* of the event handed out last */
	char		last_words[1024];
	char		version_faults[512];	/* known ones, "" if none */

	FrameOut	out;
	FrameIn		in;
	FrameReader frame;			/* a RECORDS frame being handed out, if more */
	size_t		drained;		/* bytes of "in" that are no whole frame yet */

	int			max_outcomes;
	BridgeOutcome *outcomes;
	int			max_headers;
	BridgeHeader *headers;
	int			max_leaderless;
	int32	   *leaderless;

	uint32		ping_number;
	bool		ping_pending;
	int64		ping_sent;
	int64		heard;			/* when something came last */
	int64		ping_waited;	/* for how long we have been listening */
	int64		watched;		/* last call of bridge_watchdog */
};

/*
 * Ends the child, if it hasn't ended, and says how it did (text may be NULL).
 * True if it ended by itself.
 */
extern bool bridge_reap(Bridge *bridge, char *text, size_t size);

#endif							/* OUTBOX_BRIDGE_PRIVATE_H */
