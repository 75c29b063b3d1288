/*-------------------------------------------------------------------------
 *
 * held.h
 *	  Topics whose messages wait: a mark each, not a row a message.
 *
 * A topic that can't be published is held: the publish sweep passes its
 * messages by, and the mark keeps where they begin.
 *
 *	WAITING ──next_try──► ASKED ──metadata says usable──► PROBING
 *	   ▲                    │ says not                      │ first message sent
 *	   └────────────────────┴──────────── it failed ◄───────┤
 *	                                                        ▼
 *	                                  (released) ◄──── CATCHING_UP
 *
 * While it catches up, a topic has a sweep of its own, from the mark on, and
 * is passed by in the main one; when the two meet, it is released.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_HELD_H
#define OUTBOX_HELD_H

#include "utils/hsearch.h"

#include "message_id.h"
#include "outbox.h"

typedef enum HeldState
{
	HELD_WAITING,
	HELD_ASKED,
	HELD_PROBING,
	HELD_CATCHING_UP
} HeldState;

typedef struct Held
{
	char		topic[OUTBOX_TOPIC_LEN + 1];	/* the key: must be first */
	HeldState	state;
	const char *reason;			/* a constant, as outbox.held has it */
	char		error[WORKER_TEXT_LEN];
	MessageClock cursor;
	int			tries;
	TimestampTz next_try;
	bool		dirty;			/* the table must follow, before the cursors do */
	bool		outdated;		/* the table may follow: it only shows more tries */
	bool		released;		/* to be deleted there, and here */
	bool		paused;			/* waits until outbox.resume is called */

	/* of the current pass */
	MessageClock upto;			/* where its sweep came to */
	MessageClock passed_by;		/* the lowest the main sweep left to it */
	bool		met;			/* its sweep has met the main one */
	int			found;			/* messages its sweep put into the batch */
} Held;

/* Reads the marks of publisher number of count; needs SPI */
extern void held_load(int number, int count);

/*
 * Reads which topics are paused: those that weren't are held from that tick
 * on, those that aren't any more are tried.  Needs SPI.
 */
extern void held_load_paused(MessageClock from);

/* NULL if the topic isn't held */
extern Held *held_find(const char *topic);

/*
 * Holds a topic from a tick on, or notes that it still fails: then the mark
 * goes back to that tick if it was above.
 */
extern void held_hold(const char *topic, MessageClock from, const char *reason,
					  const char *error);

/* A message of a held topic was passed by: the mark must not be above it */
extern void held_pass_by(Held *held, MessageClock clock);

/* Before and after a publishing pass; the latter moves the marks on */
extern void held_begin_pass(Held *held);
extern void held_end_pass(void);

/* The brokers told of the topic: usable or why not */
extern void held_answer(const char *topic, bool usable, const char *reason,
						const char *error);

/* Tries it at once, at the next turn */
extern void held_try_now(const char *topic);

/* The same for all: something was set, or made */
extern void held_try_all_now(void);

/* No answer will come to what was asked: the bridge is a new one */
extern void held_forget_questions(void);

/* The next one due to be asked for; NULL if none.  It is ASKED then. */
extern Held *held_next_question(TimestampTz now);

/* How many topics are to be probed or catch up */
extern int	held_working(void);

/* When the first WAITING one is due; DT_NOEND if none */
extern TimestampTz held_next_try(void);

/* One after the other, in any order; NULL at the end */
typedef struct HeldIterator
{
	bool		started;
	HASH_SEQ_STATUS status;
} HeldIterator;
extern Held *held_next(HeldIterator *iterator);

/* Is there something to write now, or at some time? */
extern bool held_is_dirty(void);
extern bool held_is_outdated(void);

/* Writes what changed; needs SPI */
extern void held_save(void);

#endif							/* OUTBOX_HELD_H */
