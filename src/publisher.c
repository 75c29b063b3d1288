/*-------------------------------------------------------------------------
 *
 * publisher.c
 *	  Carries NEW messages to Kafka and marks them SENT.
 *
 * A pass has two short transactions and none while Kafka is waited for.  The
 * first reads a batch, the second writes what became of it; between them the
 * messages stay NEW, so whatever dies, nothing is lost.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/twophase.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "announce.h"
#include "batch.h"
#include "housekeeping.h"
#include "recovery.h"
#include "store.h"
#include "topic_admin.h"
#include "topic_config.h"

/* The net under every wake-up that could be missed (ms) */
#define SLOW_POLL		10000
/* The cursors are saved this often while messages flow (ms) */
#define SAVE_INTERVAL	1000

typedef struct Publisher
{
	Worker	   *worker;
	Sweep		sweep;
	Batch		batch;
	MemoryContext pass_context;
	bool		loaded;			/* sweep and marks were read */
	bool		more;			/* another pass has work at once */
	bool		unsaved;		/* the sweep met messages since the cursors were saved */
	TimestampTz saved_at;
	uint32		generation;		/* its own in the database slot, as the last pass saw it */
	TimestampTz bridge;			/* start of the one that was asked things */
} Publisher;

/* ---------------------------------------------------------------------
 * First transaction: read
 * --------------------------------------------------------------------- */

/* It does what one has to do for all */
static bool
is_first(const Publisher *publisher)
{
	return publisher->worker->number == 0;
}

/* What prepared transactions have committed may be due, and may lie anywhere */
static void
read_prepared(Publisher *publisher)
{
	if (!sweep_read_prepared(&publisher->sweep) || !is_first(publisher))
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
	if (is_first(publisher))
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
	if (changed && is_first(publisher))
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
	if ((changed || new_bridge) && is_first(publisher))
		topic_admin_requests(worker);
	ask_about_held(worker);

	/* the order of these is the proof: see sweep.c */
	sweep_begin_pass(&publisher->sweep);
	publisher->more = is_first(publisher) && recovery_next() <= GetCurrentTimestamp() &&
		recovery_step(&publisher->sweep);
	PushActiveSnapshot(GetTransactionSnapshot());
	sweep_see(&publisher->sweep, GetActiveSnapshot());
	if (max_prepared_xacts > 0 || changed || !loaded)
		read_prepared(publisher);
	batch_read(&publisher->batch, &publisher->sweep);
	PopActiveSnapshot();
	worker_commit(worker);
	return true;
}

/* ---------------------------------------------------------------------
 * Second transaction: write
 * --------------------------------------------------------------------- */

static int
compare_messages(const void *a, const void *b)
{
	return memcmp(&(*(OutMessage *const *) a)->id, &(*(OutMessage *const *) b)->id, UUID_LEN);
}

/* The messages with a fate, in the order of ids */
static OutMessage **
sorted_with_fate(const Batch *batch, Fate fate, int *n)
{
	OutMessage **messages = palloc(Max(batch->n, 1) * sizeof(OutMessage *));

	*n = 0;
	for (int i = 0; i < batch->n; i++)
	{
		if (batch->messages[i].fate == fate)
			messages[(*n)++] = &batch->messages[i];
	}
	qsort(messages, *n, sizeof(OutMessage *), compare_messages);
	return messages;
}

static int
mark(OutMessage **messages, int n, const StatusChange *change)
{
	StatusChange placed = *change;
	pg_uuid_t  *ids = palloc(Max(n, 1) * sizeof(pg_uuid_t));
	ItemPointerData *places = palloc(Max(n, 1) * sizeof(ItemPointerData));

	for (int i = 0; i < n; i++)
	{
		ids[i] = messages[i]->id;
		places[i] = messages[i]->place;
	}
	placed.places = places;
	return store_change_status(ids, n, &placed, NULL);
}

/*
 * A SENT message that waits for a result is met by the recovery sweep, unless
 * that was there before it, or it was published out of its turn.
 */
static void
schedule_recovery(const Sweep *sweep, OutMessage **sent, int n)
{
	TimestampTz now = GetCurrentTimestamp();
	Delayed    *rows = palloc(Max(n, 1) * sizeof(Delayed));
	int			nrows = 0;

	for (int i = 0; i < n; i++)
	{
		const TopicConfig *config = sent[i]->config;

		if (config == NULL)
			continue;
		recovery_expect(config);
		if (sent[i]->source != SOURCE_SWEEP || sweep_has_passed(sweep, sent[i]->clock))
		{
			rows[nrows].due_at = now + topic_config_patience(config, sent[i]->attempts + 1);
			rows[nrows++].id = sent[i]->id;
		}
	}

	/*
	 * The first publisher doesn't look behind what may still be committed, so
	 * nothing may be due before this was said.
	 */
	if (nrows > 0)
	{
		TimestampTz late;

		announce_transaction();
		late = GetCurrentTimestamp() - now;
		for (int i = 0; i < nrows; i++)
			rows[i].due_at += late;
	}
	recovery_schedule(rows, nrows);
}

/* The rows of outbox.delayed whose message went out */
static void
forget_delayed(OutMessage **messages, int n)
{
	int			nready;
	const Delayed *ready = recovery_ready(&nready);
	Delayed    *rows = palloc(Max(nready, 1) * sizeof(Delayed));
	int			nrows = 0;

	for (int i = 0; i < n; i++)
	{
		for (int j = 0; j < nready && messages[i]->source == SOURCE_DELAYED; j++)
		{
			if (memcmp(&ready[j].id, &messages[i]->id, UUID_LEN) == 0)
				rows[nrows++] = ready[j];
		}
	}
	recovery_forget(rows, nrows);
	if (nrows > 0)
		recovery_wake();
}

static void
write_sent(Publisher *publisher)
{
	Worker	   *worker = publisher->worker;
	StatusChange change = {.to = STATUS_SENT, .from = "N", .count_attempt = true};
	int			n;
	OutMessage **sent = sorted_with_fate(&publisher->batch, FATE_SENT, &n);
	int			again = 0;

	if (n > 0)
		worker_bridge_proved(worker);
	mark(sent, n, &change);
	schedule_recovery(&publisher->sweep, sent, n);
	forget_delayed(sent, n);
	for (int i = 0; i < n; i++)
	{
		again += sent[i]->attempts > 0;
		if (worker->bridge != NULL &&
			(i == 0 || strcmp(sent[i]->record.topic, sent[i - 1]->record.topic) != 0))
			topic_admin_ask(worker, sent[i]->record.topic);
	}
	pg_atomic_fetch_add_u64(&worker->db->published, n);
	pg_atomic_fetch_add_u64(&worker->db->republished, again);
}

static void
write_dead(Publisher *publisher)
{
	StatusChange change = {.to = STATUS_DEAD, .from = "N"};
	int			n;
	OutMessage **dead = sorted_with_fate(&publisher->batch, FATE_DEAD, &n);
	const char **errors = palloc(Max(n, 1) * sizeof(char *));

	for (int i = 0; i < n; i++)
	{
		errors[i] = dead[i]->error;
		worker_set_error(publisher->worker, errors[i]);
		ereport(LOG,
				(errmsg("a message for topic \"%s\" is dead: %s",
						dead[i]->record.topic, errors[i]),
				 errdetail("Its id is %s.", dead[i]->record.headers[0].value)));
	}
	change.errors = errors;
	pg_atomic_fetch_add_u64(&publisher->worker->db->dead, mark(dead, n, &change));
	forget_delayed(dead, n);
}

static bool
has_to_write(const Publisher *publisher)
{
	if (publisher->batch.n > 0 || held_is_dirty() || topic_admin_is_dirty() || poison_is_dirty())
		return true;
	return (publisher->unsaved || held_is_outdated()) &&
		TimestampDifferenceExceeds(publisher->saved_at, GetCurrentTimestamp(), SAVE_INTERVAL);
}

/* False if the worker has to rest: nothing was written */
static bool
write_outcomes(Publisher *publisher)
{
	if (!worker_begin(publisher->worker))
		return false;
	if (publisher->batch.n > 0)
	{
		write_sent(publisher);
		write_dead(publisher);
		chain_write(&publisher->batch);
		publisher->unsaved = true;
	}

	/* the marks go before or with the cursors that rely on them */
	held_save();
	poison_save();
	topic_admin_save();
	if (TimestampDifferenceExceeds(publisher->saved_at, GetCurrentTimestamp(), SAVE_INTERVAL))
	{
		if (publisher->unsaved)
			sweep_save(&publisher->sweep);
		publisher->saved_at = GetCurrentTimestamp();
		publisher->unsaved = false;
	}
	worker_commit(publisher->worker);
	recovery_committed();
	return true;
}

/* ---------------------------------------------------------------------
 * The pass
 * --------------------------------------------------------------------- */

/* Moves the sweep on, but not past what stays NEW and isn't held */
static void
move_on(Publisher *publisher)
{
	Batch	   *batch = &publisher->batch;

	sweep_end_pass(&publisher->sweep, batch->upto);
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
		}
		publisher->more = publisher->more || publisher->worker->bridge != NULL;
	}
	sweep_go_back(&publisher->sweep, batch->put_off_from);
	held_end_pass();

	/* something goes on unless all that is left waits for a suspect's time */
	if (batch->upto < publisher->sweep.clock ||
		((held_working() > 0 || key_holds_working()) && (batch->n > 0 || !batch->put_off)))
		publisher->more = true;
}

/* What was delivered but couldn't be marked is delivered again later */
static void
take_back(Publisher *publisher)
{
	for (int i = 0; i < publisher->batch.n; i++)
		sweep_go_back(&publisher->sweep, publisher->batch.messages[i].clock);
	publisher->loaded = false;
}

static void
pass(Publisher *publisher)
{
	Worker	   *worker = publisher->worker;
	Batch	   *batch = &publisher->batch;
	MemoryContext old = MemoryContextSwitchTo(publisher->pass_context);

	if (read_batch(publisher))
	{
		if (batch->n > 0)
		{
			worker_set_state(worker, "publishing");
			XLogFlush(batch->flush);
			batch_deliver(batch, worker);
		}
		move_on(publisher);
		if (has_to_write(publisher) && !write_outcomes(publisher))
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
	if (is_first(publisher))
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
	batch_init(&publisher->batch);
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
