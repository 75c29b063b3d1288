/*-------------------------------------------------------------------------
 *
 * key_hold.h
 *	  Keys whose messages wait in a queue: hold_key_when_dead.
 *
 * The messages of a topic with hold_key_when_dead are published one after the
 * other within each key.  When one of them is DEAD, those behind it wait until
 * an operator decides.  The publish sweep passes them by and enters them in
 * outbox.key_waiting, so that nothing is swept again when the key goes on.
 *
 *	                one is DEAD                 decided
 *	(no hold) ───────────────────────► HELD ───────────► GOING ON ──► (no hold)
 *	     │                              ▲                 ▲    │   queue is empty
 *	     │                              └─────────────────│────┘
 *	     └────────────────────────────────────────────────┘ one of them is DEAD
 *	          too many of the key for one batch
 *
 * Decided is a key when its DEAD message was resent and is not NEW any more, or
 * has a result, or is gone; when outbox.release_key was called; when the topic
 * holds its keys no more.  A message that is resent and DEAD again leaves the
 * key HELD, by the same message.  While the key goes on, what the sweep meets of
 * it goes behind the queue: the order of the queue is that of the ids.
 *
 * A hold belongs to who has the key's lane, and only that publisher writes to
 * outbox.key_hold and outbox.key_waiting.  What an operator calls writes
 * elsewhere, so that an open transaction of his never blocks a publisher.  What
 * has lost its turn (resend, recovery, deliver_at) is outside of its key's
 * order: it neither waits nor holds the key, but for the message that did.
 *
 * All of it is called from a publisher only, in a transaction (SPI connected)
 * unless a comment says that it only looks at memory.  Raises ERROR as the
 * statements do.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_KEY_HOLD_H
#define OUTBOX_KEY_HOLD_H

#include "utils/hsearch.h"
#include "utils/uuid.h"

#include "sweep.h"

/* Messages of one key in a batch */
#define CHAIN_MESSAGES	50

/* A topic and a key in the database's encoding, both terminated */
typedef struct KeyName
{
	const char *topic;
	const char *key;
} KeyName;

typedef struct KeyHold
{
	KeyName		name;			/* must be first */
	int64		number;			/* in the tables */
	pg_uuid_t	dead;			/* the message that holds it; if it is HELD */
	bool		goes_on;
	pg_uuid_t	mark;			/* all of the queue up to it was dealt with */
	bool		served;			/* it had its turn */
	bool		passed_by;		/* this pass has entered a message, */
	pg_uuid_t	entered;		/* this one, and none lower */
	bool		left;			/* one of this pass's messages stays in the queue */
} KeyHold;

/* A hash table by KeyName; the names are not copied */
extern HTAB *key_names_create(const char *title, Size entry_size, MemoryContext context);

/* Reads the holds of this publisher's lanes, instead of those it has */
extern void key_holds_load(const Sweep *sweep);

/* Only memory: is it time to look which ones are decided? */
extern bool key_holds_due(void);

/* Looks which ones are decided: they go on */
extern void key_holds_judge(void);

/* Only memory: can a key of the topic be held, or have a queue? */
extern bool key_holds_concern(const char *topic);

/* Only memory: NULL if the key isn't held and has no queue */
extern KeyHold *key_hold_find(const KeyName *name);

/* Only memory: a pass begins, whose turns are those that are left */
extern void key_holds_begin_pass(void);

/*
 * Only memory: the next one that may go on and has not had its turn, NULL at the
 * end.  No hold is made meanwhile, and none ended but the last one returned.
 * Who stops before the end says so.
 */
typedef struct KeyHoldTurns
{
	bool		started;
	HASH_SEQ_STATUS status;
} KeyHoldTurns;
extern KeyHold *key_hold_next_turn(KeyHoldTurns *turns);
extern void key_hold_stop_turns(KeyHoldTurns *turns);

/* Only memory: will another pass have messages of some queue to publish? */
extern bool key_holds_working(void);

/*
 * Holds the key for a message that is DEAD, or with NULL makes a queue for it
 * that goes on at once.
 */
extern KeyHold *key_hold_make(const KeyName *name, int lane, const pg_uuid_t *dead);

/*
 * Ends the hold of a key whose queue has nothing behind the mark; if there is
 * one, it is looked at as a whole first, in the next pass.
 */
extern void key_hold_end(KeyHold *hold);

/*
 * Only memory: a message goes to the queue, with the next key_queue_save.  There
 * is room for those of one chain above what a pass should write.
 */
extern void key_queue_add(KeyHold *hold, const pg_uuid_t *id);

/* Only memory: are these as many as a pass should write? */
extern bool key_queue_is_full(void);

/* Writes them; in the transaction of the pass that met them, at its end */
extern void key_queue_save(void);

/* The first messages in the queue, in the order of ids; returns how many */
extern int	key_queue_read(const KeyHold *hold, pg_uuid_t *ids, int max);

/* These are in their queues no more; holds has the one of each */
extern void key_queue_forget(KeyHold *const *holds, const pg_uuid_t *ids, int n);

#endif							/* OUTBOX_KEY_HOLD_H */
