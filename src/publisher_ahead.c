/*-------------------------------------------------------------------------
 *
 * publisher_ahead.c
 *	  Reads the next batch while one is being delivered.
 *
 * Where there is a backlog, the database and Kafka would wait for each other in
 * turn.  So once a batch has been handed to the bridge, a transaction marks the
 * batch before it, which went out, and reads the one after it.  That is handed
 * over if every message of the one before was acknowledged, and else forgotten:
 * it might overtake what is left.
 *
 * What is read ahead is the publish sweep's alone.  Everything else that a pass
 * looks after waits for the next one that reads by itself, which is soon.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/twophase.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "housekeeping.h"
#include "publisher_private.h"
#include "recovery.h"

/*
 * Only where there is more to read than the batch took, and nothing in it that
 * came from elsewhere or has an order of its own.  The sweep's messages are the
 * last in a batch, so it has others if the first isn't one.
 */
static bool
may_look_ahead(const Publisher *publisher)
{
	const Batch *batch = publisher->batch;
	TimestampTz now = GetCurrentTimestamp();

	return batch->upto < publisher->sweep.clock &&
		batch->messages[0].source == SOURCE_SWEEP && batch->chains == NULL &&
		!poison_has_suspects() && held_working() == 0 && !key_holds_working() &&
		now < publisher->ahead_until && now < housekeeping_next(publisher->worker) &&
		(!publisher_is_first(publisher) || now < recovery_next());
}

/* One of the batches that is neither in flight nor to be marked */
static Batch *
unused_batch(Publisher *publisher)
{
	Batch	   *batch = publisher->batches;

	while (batch == publisher->batch || batch == publisher->before)
		batch++;
	return batch;
}

void
publisher_look_ahead(void *arg)
{
	Publisher  *publisher = arg;
	Worker	   *worker = publisher->worker;
	Sweep	   *sweep = &publisher->sweep;
	MemoryContext context = CurrentMemoryContext;
	Batch	   *ahead = unused_batch(publisher);

	if (!may_look_ahead(publisher) || !worker_begin(worker))
		return;

	/* the cursors must not pass what is in flight */
	sweep->in_flight = publisher->batch->messages[0].clock;
	if (publisher->before != NULL)
		publisher_write_batch(publisher, publisher->before);
	publisher_write_rest(publisher);
	bridge_pump(worker->bridge);

	/* the order of these is the proof: see sweep.c */
	sweep_begin_pass(sweep);
	PushActiveSnapshot(GetTransactionSnapshot());
	sweep_see(sweep, GetActiveSnapshot());
	if (max_prepared_xacts > 0)
		publisher_read_prepared(publisher);
	batch_read_ahead(ahead, sweep, publisher->batch, worker->bridge);
	PopActiveSnapshot();
	worker_commit(worker);
	recovery_committed();
	MemoryContextSwitchTo(context);
	publisher->before = NULL;
	publisher->ahead = ahead;
}

bool
publisher_goes_on(Publisher *publisher)
{
	Batch	   *batch = publisher->batch;
	Batch	   *ahead = publisher->ahead;

	publisher->ahead = NULL;
	if (ahead == NULL || publisher->worker->bridge == NULL || held_working() > 0)
		return false;
	for (int i = 0; i < batch->n; i++)
	{
		if (batch->messages[i].fate != FATE_SENT)
			return false;
	}
	publisher->before = batch;
	publisher->batch = ahead;
	sweep_end_pass(&publisher->sweep, ahead->upto);
	return ahead->n > 0;
}
