/*-------------------------------------------------------------------------
 *
 * held.h
 *	  Topics whose messages wait: a mark each, not a row a message.
 *
 * A topic that can't be published is held: the publish sweep passes its
 * messages by, and the mark keeps where they begin.  Where only a partition of
 * it can't, that has a mark of its own, for the messages whose keys lead there;
 * a mark of the whole topic is for all that have none of their own.
 *
 *	WAITING ──next_try──► ASKED ──metadata says usable──► PROBING
 *	   ▲                    │ says not                      │ first message sent
 *	   └────────────────────┴──────────── it failed ◄───────┤
 *	                                                        ▼
 *	                                  (released) ◄──── CATCHING_UP
 *
 * While it catches up, a topic (or partition) has a sweep of its own, from the
 * mark on, and is passed by in the main one; when the two meet, it is released.
 * The partitions of a topic that do so at the same time share one sweep.
 * Where the mark of a whole topic is there already, it goes on without the
 * partitions that fail then.
 *
 * What can't be told by partition, all of the topic waits for: it is paused,
 * missing or denied, or the number of its partitions has changed, and with it
 * where the keys lead.  Then one mark, the lowest, takes the place of all.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_HELD_H
#define OUTBOX_HELD_H

#include "lib/ilist.h"

#include "bridge.h"
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
	dlist_node	node;			/* among all marks */
	char		topic[OUTBOX_TOPIC_LEN + 1];
	int32		partition;		/* -1: all that have no mark of their own */
	int32		partitions;		/* of so many; -1 with the former */
	HeldState	state;
	const char *reason;			/* a constant, as outbox.held has it */
	char		error[WORKER_TEXT_LEN];
	MessageClock cursor;
	int			tries;
	TimestampTz failed_at;		/* when the last try did */
	TimestampTz next_try;
	bool		dirty;			/* the table must follow, before the cursors do */
	bool		outdated;		/* the table may follow: it shows fewer tries, or is
								 * lower than need be */
	bool		released;		/* nobody's any more; to be deleted there */
	bool		paused;			/* waits until outbox.resume is called */

	/* of the current pass */
	MessageClock upto;			/* where its sweep came to */
	MessageClock passed_by;		/* the lowest the main sweep left to it */
	bool		swept;			/* had its turn */
	bool		met;			/* its sweep has met the main one */
	bool		full;			/* its probe was found, and where more begins */
	int			found;			/* messages its sweep put into the batch */
} Held;

/* The marks of a topic, one at least */
typedef struct HeldTopic
{
	char		topic[OUTBOX_TOPIC_LEN + 1];	/* the key: must be first */
	Held	   *whole;			/* NULL: only partitions are held */
	int			nheld;			/* partitions with a mark of their own, */
	int32		partitions;		/* of so many; 0: there is none */
	Held	  **by_partition;	/* NULL for those without */
} HeldTopic;

/* Reads the marks of publisher number of count anew; needs SPI */
extern void held_load(int number, int count);

/*
 * Reads which topics are paused: those that weren't are held from that tick
 * on, those that aren't any more are tried.  Needs SPI.
 */
extern void held_load_paused(MessageClock from);

/* NULL if nothing of the topic is held.  Valid until a mark comes or goes. */
extern HeldTopic *held_find_topic(const char *topic);

/*
 * The mark of the topic's messages with that key, in UTF-8; NULL if they aren't
 * held.  The key is looked at only if topic->partitions isn't 0.
 */
extern Held *held_find(const HeldTopic *topic, const char *key, int key_len);

/* The same with a key in the database's encoding; topic may be NULL, for none */
extern Held *held_find_by_key(const HeldTopic *topic, const char *key);

/*
 * Holds a partition of a topic, or all of it (-1, or a number that contradicts
 * what is known), from a tick on, or notes that it still fails: then the mark
 * goes back to that tick if it was above.
 */
extern void held_hold(const char *topic, int32 partition, int32 partitions,
					  MessageClock from, const char *reason, const char *error);

/* A message of a held topic was passed by: the mark must not be above it */
extern void held_pass_by(Held *held, MessageClock clock);

/* Before and after a publishing pass; the latter moves the marks on */
extern void held_begin_pass(Held *held);
extern void held_end_pass(void);

/* The brokers told of a topic: usable or why not, and by which partitions */
extern void held_answer(const BridgeEvent *event);

/* Tries it at once, at the next turn */
extern void held_try_now(const char *topic);

/* The same for all: something was set, or made */
extern void held_try_all_now(void);

/* No answer will come to what was asked: the bridge is a new one */
extern void held_forget_questions(void);

/*
 * The next topic due to be asked for; NULL if none.  Its marks that are due, or
 * soon, are ASKED then.  Valid until a mark comes or goes.
 */
extern const char *held_next_question(TimestampTz now);

/* How many marks are to be probed or catch up */
extern int	held_working(void);

/*
 * Begins the sweep of those of a topic, which have it together: from where, and
 * for how many of them.
 */
extern int	held_begin_sweep(const char *topic, MessageClock *from);

/* Is a message of that mark one that this sweep is for? */
extern bool held_sweeps(const Held *held, MessageClock clock);

/* It is there to be published; false: not in this pass */
extern bool held_take(Held *held, MessageClock clock);

/* What was taken has to wait for another pass all the same */
extern void held_put_off(Held *held, MessageClock clock);

/* Everything below upto was read, and all of it below the main sweep if met */
extern void held_end_sweep(const char *topic, MessageClock upto, bool met);

/* When the first WAITING one is due; DT_NOEND if none */
extern TimestampTz held_next_try(void);

/*
 * One mark after the other, in any order; NULL at the end.  Marks may come and
 * go meanwhile, but for held_save.
 */
typedef struct HeldIterator
{
	dlist_node *last;
} HeldIterator;
extern Held *held_next(HeldIterator *iterator);

/* Is there something to write now, or at some time? */
extern bool held_is_dirty(void);
extern bool held_is_outdated(void);

/* Writes what must be written, or all that changed; needs SPI */
extern void held_save(bool all);

#endif							/* OUTBOX_HELD_H */
