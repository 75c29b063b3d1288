/*-------------------------------------------------------------------------
 *
 * batch.h
 *	  The messages of one publishing pass, from the log to their outcomes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_BATCH_H
#define OUTBOX_BATCH_H

#include "access/xlogdefs.h"

#include "held.h"
#include "key_hold.h"
#include "log_scan.h"
#include "poison.h"
#include "sweep.h"
#include "topic_config.h"
#include "worker.h"

/* A batch ends at so many messages, or so many bytes */
#define BATCH_MESSAGES	4000
#define BATCH_BYTES		(4 * 1024 * 1024)

/* Rows one pass looks at for topics that catch up */
#define CATCH_UP_ROWS	20000

typedef enum MessageSource
{
	SOURCE_SWEEP,				/* the publish sweep */
	SOURCE_HELD,				/* a held topic's own sweep */
	SOURCE_DELAYED,				/* outbox.delayed */
	SOURCE_KEY					/* the queue of a key that goes on */
} MessageSource;

typedef enum Fate
{
	FATE_OPEN,					/* no outcome yet */
	FATE_SENT,
	FATE_DEAD,
	FATE_ALONE,					/* to be sent by itself, again or as a suspect */
	FATE_BEHIND,				/* not sent yet: one of its key comes before it */
	FATE_LEFT					/* stays NEW */
} Fate;

typedef struct OutMessage
{
	pg_uuid_t	id;
	ItemPointerData place;		/* in its own segment, or invalid */
	MessageClock clock;
	MessageSource source;
	int			attempts;
	const TopicConfig *config;	/* NULL if it expects nothing back */
	int			lane;
	const char *key;			/* in the database's encoding, NULL for none */
	bool		in_chain;		/* goes out when the one of its key before it has */
	int			next;			/* the one behind it, -1: none */
	Suspect    *suspect;		/* NULL if it is none */
	BridgeRecord record;
	Fate		fate;
	OutcomeClass class;
	const char *error;			/* NULL, or the outcome's, with its detail */
} OutMessage;

typedef struct Batch Batch;
struct Batch
{
	MemoryContext context;		/* what the messages point to */
	OutMessage *messages;		/* in the order of publishing */
	int			n;
	Size		bytes;
	HTAB	   *chains;			/* see chain.c; NULL: none */
	bool		looked_at;		/* the publish sweep met a row, its own or not */
	MessageClock upto;			/* where the publish sweep came to */
	bool		unfinished;		/* a held topic's sweep stopped at its share */
	bool		put_off;		/* some have to wait for a suspect */
	MessageClock put_off_from;	/* the first of them in the publish sweep */
	XLogRecPtr	flush;			/* what must be durable before they leave */

	/* while it is read ahead */
	const Batch *in_flight;		/* the batch that is being delivered, or NULL */
	Bridge	   *bridge;			/* that has it, or NULL */
};

extern void batch_init(Batch *batch);

/*
 * Reads the next messages to publish, in the active snapshot, which sweep_see
 * has seen.  In a transaction (SPI connected).
 */
extern void batch_read(Batch *batch, Sweep *sweep);

/*
 * The same, but of the publish sweep only, and without those that are in flight:
 * a batch of nothing else, in the order of ids.  Meanwhile the bridge gets what
 * its socket didn't take at once.
 */
extern void batch_read_ahead(Batch *batch, Sweep *sweep, const Batch *in_flight,
							 Bridge *bridge);

/*
 * Appends a message; the batch isn't full.  False if it has to wait for a
 * suspect: whoever met it goes back for it.
 */
extern bool batch_take(Batch *batch, const LogRow *row, MessageSource source);

/*
 * batch_record.c: makes the record of a message, which is the batch's last, in
 * the current memory context.
 */
extern void batch_fill_record(const Batch *batch, OutMessage *message, const LogRow *row);

/* Has it that many quarters of what it may have? */
extern bool batch_has(const Batch *batch, int quarters);

/* ---- chain.c: messages of one key that go out one after the other ---- */

/*
 * Of a topic that holds its keys, a message whose key is held, or that has
 * enough in the batch, goes to the key's queue: true.  In the transaction of
 * batch_read.
 */
extern bool chain_passes_by(Batch *batch, const LogRow *row);

/* The message that was added last is the last one of its chain */
extern void chain_add(Batch *batch);

/* Reads the queues of keys that go on; in the transaction of batch_read */
extern void chain_read_queues(Batch *batch, Snapshot snapshot);

/*
 * Writes what the fates mean for the keys: holds those of which a message
 * died, and takes from the queues what went out.  In the transaction that marks
 * the messages, after that.
 */
extern void chain_write(const Batch *batch);

/* ---- whether it waits ---- */

/* The mark that its messages wait under; NULL if it isn't held */
extern Held *message_mark(const OutMessage *message);

/*
 * deliver.c: hands the batch to the bridge and waits until every message has
 * its fate.  In no transaction.  Holds topics as the outcomes say.  Calls
 * handed_over(arg) once, before it begins to wait; that may have a transaction.
 */
typedef void (*BatchHandedOver) (void *arg);
extern void batch_deliver(Batch *batch, Worker *worker, BatchHandedOver handed_over, void *arg);

/* topic_admin.c: an event that isn't an outcome */
extern void publisher_event(Worker *worker, const BridgeEvent *event);

#endif							/* OUTBOX_BATCH_H */
