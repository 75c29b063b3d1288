/*-------------------------------------------------------------------------
 *
 * poison.h
 *	  Suspects: NEW messages that may have killed a bridge.
 *
 * When a bridge ends by itself, every message it had is a suspect, and goes
 * alone from then on.  The one that a bridge dies on then is caught: it goes
 * last, after growing pauses, until it is out, or has done it often enough to
 * be DEAD.
 *
 * A publisher's only.  outbox.suspect has them, so that they go alone also
 * after the end of the worker or the server.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_POISON_H
#define OUTBOX_POISON_H

#include "log_scan.h"

typedef struct Suspect
{
	pg_uuid_t	id;				/* the key: must be first */
	int			tries;			/* deaths that count */
	bool		caught;			/* a bridge died that had nothing else */
	bool		wants_proof;	/* that didn't count, since nothing else went out */
	bool		known;			/* the table has it */
	bool		own;			/* not only read there: it was met, or became one here */
	bool		dirty;			/* the table must follow */
	bool		settled;		/* it isn't NEW any more: to be deleted, there and here */
	uint64		proof;			/* more acknowledgements than these prove a bridge */
	TimestampTz met_at;			/* when a pass came by it */
	TimestampTz tried_at;		/* when it was caught last */
	char	   *error;			/* how the bridge ended then, or NULL */
} Suspect;

/* How a message goes that a pass has met */
typedef enum SuspectTurn
{
	TURN_TOGETHER,				/* like any other */
	TURN_ALONE,					/* it is a suspect */
	TURN_LATER					/* in another pass: it, or one of its key before it, waits */
} SuspectTurn;

/* Adds those that the table has; needs SPI */
extern void poison_load(void);

/* Only memory: are there any? */
extern bool poison_has_suspects(void);

/* Begins a pass: nothing was met yet */
extern void poison_begin_pass(void);

/*
 * The turn of a message, to be asked in the order of publishing.  Sets the
 * suspect, to NULL if it is none.  Valid until poison_save.  Cheap while there
 * are no suspects.
 */
extern SuspectTurn poison_turn(const LogRow *row, Suspect **suspect);

/* The bridge ended by itself and had this message among others */
extern Suspect *poison_suspect(const pg_uuid_t *id);

/*
 * The bridge ended and had nothing else.  crashed: by itself; soon: within the
 * time in which it can be the message's doing; connected: the brokers were up;
 * how: in words.  Returns NULL if that counts, or a text that says why not.
 */
extern const char *poison_caught(Suspect *suspect, bool crashed, bool soon,
								 bool connected, const char *how);

/* It became SENT or DEAD: the row goes with the next poison_save */
extern void poison_settled(Suspect *suspect);

/* So many messages of this database were acknowledged */
extern void poison_acknowledged(int n);

/* When one that waited in the last pass is due; DT_NOEND if none did */
extern TimestampTz poison_next_try(void);

/* Is there something to write? */
extern bool poison_is_dirty(void);

/* Writes it; needs SPI */
extern void poison_save(void);

#endif							/* OUTBOX_POISON_H */
