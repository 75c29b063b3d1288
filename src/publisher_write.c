/*-------------------------------------------------------------------------
 *
 * publisher_write.c
 *	  The second transaction of a publisher's pass: what became of a batch.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/uuid.h"

#include "announce.h"
#include "publisher_private.h"
#include "recovery.h"
#include "store.h"
#include "topic_admin.h"

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

/* The next batch is on its way to the bridge, which must not run dry */
static void
feed_bridge(void *arg)
{
	Worker	   *worker = arg;

	if (worker->bridge != NULL)
		bridge_pump(worker->bridge);
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
write_sent(Publisher *publisher, const Batch *batch)
{
	Worker	   *worker = publisher->worker;
	StatusChange change = {.to = STATUS_SENT, .from = "N", .count_attempt = true,
	.meanwhile = feed_bridge, .meanwhile_arg = worker};
	int			n;
	OutMessage **sent = sorted_with_fate(batch, FATE_SENT, &n);
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
write_dead(Publisher *publisher, const Batch *batch)
{
	StatusChange change = {.to = STATUS_DEAD, .from = "N"};
	int			n;
	OutMessage **dead = sorted_with_fate(batch, FATE_DEAD, &n);
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

void
publisher_write_batch(Publisher *publisher, const Batch *batch)
{
	write_sent(publisher, batch);
	write_dead(publisher, batch);
	chain_write(batch);
	publisher->unsaved = true;
}

/* The marks go before or with the cursors that rely on them */
void
publisher_write_rest(Publisher *publisher)
{
	bool		due = TimestampDifferenceExceeds(publisher->saved_at, GetCurrentTimestamp(),
												 SAVE_INTERVAL);

	held_save(due);
	poison_save();
	topic_admin_save();
	if (!due)
		return;
	if (publisher->unsaved)
		sweep_save(&publisher->sweep);
	publisher->saved_at = GetCurrentTimestamp();
	publisher->unsaved = false;
}

static bool
has_to_write(const Publisher *publisher)
{
	if (publisher->batch->n > 0 || publisher->before != NULL || held_is_dirty() ||
		topic_admin_is_dirty() || poison_is_dirty())
		return true;
	return (publisher->unsaved || held_is_outdated()) &&
		TimestampDifferenceExceeds(publisher->saved_at, GetCurrentTimestamp(), SAVE_INTERVAL);
}

/* One transaction each: a message is locked after all of lower ids */
bool
publisher_write(Publisher *publisher)
{
	if (!has_to_write(publisher))
		return true;
	if (publisher->before != NULL)
	{
		if (!worker_begin(publisher->worker))
			return false;
		publisher_write_batch(publisher, publisher->before);
		worker_commit(publisher->worker);
		recovery_committed();
		publisher->before = NULL;
	}
	if (!worker_begin(publisher->worker))
		return false;
	if (publisher->batch->n > 0)
		publisher_write_batch(publisher, publisher->batch);
	publisher->sweep.in_flight = PG_UINT64_MAX;
	publisher_write_rest(publisher);
	worker_commit(publisher->worker);
	recovery_committed();
	return true;
}
