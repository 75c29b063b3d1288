/*-------------------------------------------------------------------------
 *
 * publisher_private.h
 *	  What the parts of a publisher share: its state, and the transactions of
 *	  a pass.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_PUBLISHER_PRIVATE_H
#define OUTBOX_PUBLISHER_PRIVATE_H

#include "batch.h"

/* One that is being delivered, the one before it, and the one after it */
#define PUBLISHER_BATCHES	3

/* The cursors are saved this often while messages flow (ms) */
#define SAVE_INTERVAL	1000

typedef struct Publisher
{
	Worker	   *worker;
	Sweep		sweep;
	Batch		batches[PUBLISHER_BATCHES];
	Batch	   *batch;			/* of this pass */
	Batch	   *before;			/* went out, and isn't marked yet; or NULL */
	Batch	   *ahead;			/* read already, for the next pass; or NULL */
	TimestampTz ahead_until;	/* then a pass reads by itself again */
	MemoryContext pass_context;
	bool		loaded;			/* sweep and marks were read */
	bool		more;			/* another pass has work at once */
	bool		unsaved;		/* the sweep met messages since the cursors were saved */
	TimestampTz saved_at;
	uint32		generation;		/* its own in the database slot, as the last pass saw it */
	TimestampTz bridge;			/* start of the one that was asked things */
} Publisher;

/* Does it what one has to do for all? */
static inline bool
publisher_is_first(const Publisher *publisher)
{
	return publisher->worker->number == 0;
}

/* ---- publisher.c ---- */

/*
 * Goes back for prepared transactions that have committed in the active
 * snapshot; between sweep_see and the reading of a batch
 */
extern void publisher_read_prepared(Publisher *publisher);

/* ---- publisher_write.c ---- */

/* Writes what became of a batch; in a transaction, before publisher_write_rest */
extern void publisher_write_batch(Publisher *publisher, const Batch *batch);

/* Writes what else has to be written with or after it: marks, then cursors */
extern void publisher_write_rest(Publisher *publisher);

/*
 * The second transaction of a pass, if there is something to write: what became
 * of its batch; in one of its own before, of the batch before.  False if the
 * worker has to rest: then what went out is to be delivered again.
 */
extern bool publisher_write(Publisher *publisher);

/* ---- publisher_ahead.c ---- */

/*
 * While the pass's batch is being delivered: marks the batch before it, and
 * reads the one after it, in one transaction.  Does nothing where that could
 * be wrong, or useless.  To be called once the batch was handed over.
 */
extern void publisher_look_ahead(void *publisher);

/*
 * The batch was delivered.  True if the one read ahead may follow: it is the
 * pass's then.  Else it is forgotten, and the sweep is still below it.
 */
extern bool publisher_goes_on(Publisher *publisher);

#endif							/* OUTBOX_PUBLISHER_PRIVATE_H */
