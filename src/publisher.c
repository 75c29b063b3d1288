/*-------------------------------------------------------------------------
 *
 * publisher.c
 *	  Carries NEW messages to Kafka and marks them SENT.
 *
 * A pass has two short transactions and none while Kafka is waited for.  The
 * first reads a batch, the second writes what became of it; between them the
 * messages stay NEW, so whatever dies, nothing is lost.
 *
 * While there are more messages than a batch takes, a pass has several of them:
 * see publisher_ahead.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/twophase.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "housekeeping.h"
#include "publisher_private.h"
#include "recovery.h"
#include "topic_admin.h"

/* The net under every wake-up that could be missed (ms) */
#define SLOW_POLL		10000
/* No batch is read ahead after so long: pauses, delays and others have to be seen (ms) */
#define AHEAD_TIME		250

/* ---------------------------------------------------------------------
 * First transaction: read
 * --------------------------------------------------------------------- */

/* What prepared transactions have committed may be due, and may lie anywhere */
void
publisher_read_prepared(Publisher *publisher)
{
	if (!sweep_read_prepared(&publisher->sweep) || !publisher_is_first(publisher))
		return;
	recovery_go_back(message_clock_timestamp(sweep_lowest(&publisher->sweep)));
	recovery_wake();
}

static void
load(Publisher *publisher)
{
	Worker	   *worker = publisher->worker;

	message_floor_ensure();
	publisher->loaded = sweep_load(&publisher->sweep, worker->extension, worker->number,
								   worker->count);
	held_load(worker->number, worker->count);
	key_holds_load(&publisher->sweep);
	poison_load();
	if (publisher_is_first(publisher))
		recovery_wake();
}

static void
ask_about_held(Worker *worker)
{
	const char *topic;

	while ((topic = held_next_question(GetCurrentTimestamp())) != NULL)
		bridge_ask_topic(worker->bridge, topic);
}

/* False if the worker has to rest */
static bool
read_batch(Publisher *publisher)
{
	Worker	   *worker = publisher->worker;
	bool		new_bridge = publisher->bridge != worker->bridge_started_at;
	bool		changed;
	bool		loaded = publisher->loaded;

	if (!worker_begin(worker))
	{
		publisher->loaded = false;
		return false;
	}
	if (!publisher->loaded)
		load(publisher);
	changed = topic_config_refresh();
	if (changed)
		held_try_all_now();
	if (changed && publisher_is_first(publisher))
		recovery_topics_changed();
	if (changed || !loaded)
		held_load_paused(sweep_lowest(&publisher->sweep));
	if (changed || key_holds_due())
		key_holds_judge();
	if (new_bridge)
	{
		topic_admin_restart();
		held_forget_questions();
		publisher->bridge = worker->bridge_started_at;
	}
	if ((changed || new_bridge) && publisher_is_first(publisher))
		topic_admin_requests(worker);
	ask_about_held(worker);

	/* the order of these is the proof: see sweep.c */
	sweep_begin_pass(&publisher->sweep);
	publisher->more = publisher_is_first(publisher) && recovery_next() <= GetCurrentTimestamp() &&
		recovery_step(&publisher->sweep);
	PushActiveSnapshot(GetTransactionSnapshot());
	sweep_see(&publisher->sweep, GetActiveSnapshot());
	if (max_prepared_xacts > 0 || changed || !loaded)
		publisher_read_prepared(publisher);
	batch_read(publisher->batch, &publisher->sweep);
	PopActiveSnapshot();
	worker_commit(worker);

	/* what is left over is gone back for: see move_on */
	sweep_end_pass(&publisher->sweep, publisher->batch->upto);
	publisher->ahead_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), AHEAD_TIME);
	return true;
}

/* ---------------------------------------------------------------------
 * The pass
 * --------------------------------------------------------------------- */

/* Goes back for what stays NEW and isn't held */
static void
move_on(Publisher *publisher)
{
	Batch	   *batch = publisher->batch;

	publisher->unsaved |= batch->looked_at && batch->put_off_from == PG_UINT64_MAX;
	for (int i = 0; i < batch->n; i++)
	{
		OutMessage *message = &batch->messages[i];
		Held	   *held;

		/* what waited for a suspect that is settled goes on at once */
		publisher->more |= batch->put_off && message->suspect != NULL;
		if (message->fate != FATE_LEFT)
			continue;
		held = message_mark(message);
		if (held != NULL && held->state == HELD_WAITING)
		{
			if (message->source != SOURCE_KEY)
				held_pass_by(held, message->clock);
			continue;
		}
		if (message->source == SOURCE_SWEEP)
			sweep_go_back(&publisher->sweep, message->clock);
		else if (message->source == SOURCE_HELD)
		{
			held_pass_by(held, message->clock);
			held->met = false;

			/* what wasn't sent has proved nothing */
			if (held->state == HELD_PROBING)
				held->found = 0;
		}
		publisher->more = publisher->more || publisher->worker->bridge != NULL;
	}
	sweep_go_back(&publisher->sweep, batch->put_off_from);
	held_end_pass();

	/* something goes on unless all that is left waits for a suspect's time */
	if (batch->upto < publisher->sweep.clock || batch->unfinished ||
		((held_working() > 0 || key_holds_working()) && (batch->n > 0 || !batch->put_off)))
		publisher->more = true;
}

/* What was delivered but couldn't be marked is delivered again later */
static void
take_back(Publisher *publisher)
{
	publisher->before = NULL;
	publisher->loaded = false;
}

static void
deliver(Publisher *publisher)
{
	Batch	   *batch = publisher->batch;

	if (batch->n > 0)
	{
		worker_set_state(publisher->worker, "publishing");
		XLogFlush(batch->flush);
		batch_deliver(batch, publisher->worker, publisher_look_ahead, publisher);
	}
	move_on(publisher);
}

static void
pass(Publisher *publisher)
{
	MemoryContext old = MemoryContextSwitchTo(publisher->pass_context);

	if (read_batch(publisher))
	{
		do
			deliver(publisher);
		while (publisher_goes_on(publisher));
		if (!publisher_write(publisher))
			take_back(publisher);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(publisher->pass_context);
}

/* ---------------------------------------------------------------------
 * The main loop
 * --------------------------------------------------------------------- */

/* Milliseconds until something is due by itself */
static long
time_to_sleep(const Publisher *publisher)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due = TimestampTzPlusMilliseconds(now, SLOW_POLL);

	due = Min(Min(due, held_next_try()), housekeeping_next(publisher->worker));
	due = Min(due, poison_next_try());
	if (publisher_is_first(publisher))
		due = Min(due, recovery_next());
	if (publisher->unsaved)
		due = Min(due, TimestampTzPlusMilliseconds(publisher->saved_at, SAVE_INTERVAL + 1));
	return TimestampDifferenceMilliseconds(now, due);
}

/*
 * Sleeps unless a transaction has ended since the last pass began.  Its
 * callback raises the generation before it looks whether we sleep, and we say
 * that we sleep before we look at the generation.
 */
static void
sleep_unless_needed(Publisher *publisher)
{
	DatabaseSlot *db = publisher->worker->db;
	int			number = publisher->worker->number;

	worker_set_state(publisher->worker, !publisher->loaded ?
					 "waiting for lanes that another publisher has" :
					 poison_next_try() < DT_NOEND ?
					 "waiting to try a message again that killed the bridge" :
					 "waiting for messages");
	pg_atomic_fetch_or_u32(&db->publishers_asleep, 1U << number);
	if (pg_atomic_read_u32(&db->generation[number]) == publisher->generation)
		worker_wait(publisher->worker, time_to_sleep(publisher), false);
	pg_atomic_fetch_and_u32(&db->publishers_asleep, ~(1U << number));
}

static void
take_events(Worker *worker)
{
	BridgeEvent event;

	while (worker_next_event(worker, &event))
		publisher_event(worker, &event);
}

void
publisher_main(Worker *worker)
{
	Publisher  *publisher = MemoryContextAllocZero(TopMemoryContext, sizeof(Publisher));

	publisher->worker = worker;
	publisher->pass_context = AllocSetContextCreate(TopMemoryContext, "outbox pass",
													ALLOCSET_DEFAULT_SIZES);
	for (int i = 0; i < PUBLISHER_BATCHES; i++)
		batch_init(&publisher->batches[i]);
	publisher->batch = &publisher->batches[0];
	topic_config_init();

	for (;;)
	{
		take_events(worker);
		if (!worker_may_work(worker))
		{
			/* much may have happened to the log until it may */
			publisher->loaded = false;
			housekeeping_wait(worker, worker_bridge_time_to_start(worker, SLOW_POLL));
			continue;
		}
		publisher->generation = pg_atomic_read_u32(&worker->db->generation[worker->number]);
		pg_memory_barrier();
		pass(publisher);
		housekeeping_turn(worker);
		if (publisher->more)
			worker_wait(worker, 0, false);
		else if (worker->bridge != NULL)
			sleep_unless_needed(publisher);
	}
}
