/*-------------------------------------------------------------------------
 *
 * deliver.c
 *	  Hands a batch to the bridge and decides what becomes of each message.
 *
 * The batch ends when every message has an outcome.  The bridge itself gives
 * up on those it never sent and can't send now; after outbox.ack_timeout
 * without any progress it is told to give up on all.
 *
 * Of a chain (chain.c) only the first message is handed over, then each when
 * the one before it is acknowledged.  Where one isn't, the rest is left.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "batch.h"
#include "key_partition.h"

/* How often a message is sent alone that arrives corrupt, before it is DEAD */
#define CORRUPT_TRIES	3

/* So long after a message came into the bridge, its end is the message's doing (ms) */
#define POISON_TIME		1000

/* How long suspects may keep the others waiting in a pass (ms) */
#define SUSPECTS_TIME	500

/* After a purge every outcome follows at once; or the bridge is replaced (ms) */
#define PURGE_TIMEOUT	10000

typedef struct Delivery
{
	Batch	   *batch;
	Worker	   *worker;
	int			open;			/* messages in the bridge */
	bool		purged;
	OutMessage *alone;			/* the suspect that is in the bridge, alone */
	TimestampTz alone_since;
	const char *finished;		/* why the bridge's client is, NULL if it isn't */
	BatchHandedOver handed_over;	/* to be called before it is waited; or NULL */
	void	   *handed_over_arg;
	int		   *ready;			/* those whose turn in their chain has come */
	int			nready;
	TimestampTz deadline;
} Delivery;

static void
extend_deadline(Delivery *delivery, int ms)
{
	delivery->deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
}

static void
hand_over(Delivery *delivery, int index)
{
	OutMessage *message = &delivery->batch->messages[index];

	message->fate = FATE_OPEN;
	bridge_produce(delivery->worker->bridge, index, &message->record);
	delivery->open++;
}

/* The mark that it waits under already, NULL if there is none */
static Held *
waiting_mark(const OutMessage *message)
{
	Held	   *held = message_mark(message);

	return held != NULL && held->state == HELD_WAITING ? held : NULL;
}

/* The message stays NEW, and its mark waits already */
static void
leave(OutMessage *message, Held *held)
{
	message->fate = FATE_LEFT;
	if (message->source != SOURCE_KEY)
		held_pass_by(held, message->clock);
}

/*
 * The message stays NEW, and so do those of its topic or partition that follow.
 * What is in the queue of its key needs no mark.
 */
static void
leave_and_hold(const Batch *batch, OutMessage *message, int32 partition, int32 partitions,
			   const char *reason)
{
	MessageClock from = message->source == SOURCE_KEY ? batch->upto : message->clock;
	Held	   *held = waiting_mark(message);

	if (held != NULL)
		leave(message, held);
	else
	{
		message->fate = FATE_LEFT;
		held_hold(message->record.topic, partition, partitions, from, reason,
				  message->error);
	}
}

/*
 * The partition that failed, -1 if that isn't sure: the number of partitions
 * may have changed since the bridge chose this one.
 */
static int32
failed_partition(const OutMessage *message, const BridgeOutcome *outcome)
{
	const BridgeRecord *record = &message->record;

	if (outcome->partition < 0 || outcome->partitions < 1 ||
		key_partition(record->key, record->key_len, outcome->partitions) != outcome->partition)
		return -1;
	return outcome->partition;
}

static const char *
outcome_text(const Delivery *delivery, const BridgeOutcome *outcome)
{
	MemoryContext old;
	const char *text;

	if (outcome->class == OUTCOME_OK)
		return NULL;
	old = MemoryContextSwitchTo(delivery->batch->context);
	if (delivery->purged && outcome->class == OUTCOME_RETRIABLE)
		text = psprintf("no acknowledgement within %d ms", outbox_ack_timeout);
	else
		text = psprintf("%s: %s", outcome->error, outcome->detail);
	MemoryContextSwitchTo(old);
	return text;
}

static void
settle(Delivery *delivery, const BridgeOutcome *outcome)
{
	OutMessage *message;

	if (outcome->index >= delivery->batch->n ||
		delivery->batch->messages[outcome->index].fate != FATE_OPEN)
		elog(ERROR, "the bridge reported an outcome of message %u, which it does not have",
			 outcome->index);
	message = &delivery->batch->messages[outcome->index];
	message->class = outcome->class;
	message->error = outcome_text(delivery, outcome);
	delivery->open--;

	switch (outcome->class)
	{
		case OUTCOME_OK:
			message->fate = FATE_SENT;
			if (message->next >= 0)
				delivery->ready[delivery->nready++] = message->next;
			break;
		case OUTCOME_REJECTED:
			message->fate = FATE_DEAD;
			break;
		case OUTCOME_REQUEST_REJECTED:
		case OUTCOME_CORRUPT:
			message->fate = FATE_ALONE;
			break;
		case OUTCOME_TOPIC_MISSING:
			leave_and_hold(delivery->batch, message, -1, -1, "missing");
			break;
		case OUTCOME_TOPIC_DENIED:
			leave_and_hold(delivery->batch, message, -1, -1, "denied");
			break;
		case OUTCOME_TOPIC_MISCONFIGURED:
			leave_and_hold(delivery->batch, message, -1, -1, "misconfigured");
			break;
		case OUTCOME_CLIENT_FINISHED:
			message->fate = FATE_LEFT;
			if (delivery->finished == NULL)
				delivery->finished = message->error;
			break;
		case OUTCOME_BEHIND:
			message->fate = FATE_LEFT;
			break;
		case OUTCOME_RETRIABLE:
		case OUTCOME_UNKNOWN:
			/* where no broker answers it isn't the topic's fault */
			if (delivery->worker->brokers_up)
				leave_and_hold(delivery->batch, message, failed_partition(message, outcome),
							   outcome->partitions, "failing");
			else
				message->fate = FATE_LEFT;
			break;
	}
}

/* The bridge ended and had nothing but this suspect */
static void
convict(Delivery *delivery)
{
	Worker	   *worker = delivery->worker;
	OutMessage *message = delivery->alone;
	Suspect    *suspect = message->suspect;
	const char *how = worker->slot->bridge_last_exit;
	bool		soon = !TimestampDifferenceExceeds(delivery->alone_since, GetCurrentTimestamp(),
												   POISON_TIME);
	const char *why_not = poison_caught(suspect, worker->bridge_crashed, soon,
										worker->bridge_was_connected, how);

	message->fate = FATE_LEFT;
	ereport(LOG,
			(errmsg("a message for topic \"%s\" was alone in the bridge to Kafka that ended",
					message->record.topic),
			 errdetail(why_not == NULL ? "Its id is %s; it has done so %d of %d times." :
					   "Its id is %s; it has done so %d of %d times, this one not counted: %s.",
					   (char *) message->record.headers[0].value, suspect->tries,
					   outbox_poison_attempts, why_not)));
	if (why_not == NULL && suspect->tries >= outbox_poison_attempts)
	{
		MemoryContext old = MemoryContextSwitchTo(delivery->batch->context);

		message->fate = FATE_DEAD;
		message->error = psprintf("killed the bridge to Kafka %d %s: %s", suspect->tries,
								  suspect->tries == 1 ? "time" : "times", how);
		MemoryContextSwitchTo(old);
	}
}

/*
 * Without a bridge, what has no outcome has none to come.  If it ended by
 * itself, any message that it had may be why.  One that was caught isn't tried
 * again at once, however it ended.
 */
static void
leave_open(Delivery *delivery)
{
	OutMessage *alone = delivery->open > 0 ? delivery->alone : NULL;
	bool		crashed = delivery->worker->bridge_crashed && delivery->open > 0;

	if (alone != NULL && (crashed || alone->suspect->caught))
		convict(delivery);
	else if (crashed)
		ereport(LOG,
				(errmsg_plural("the bridge to Kafka had %d message when it ended",
							   "the bridge to Kafka had %d messages when it ended",
							   delivery->open, delivery->open),
				 errdetail("They are published one at a time now.")));
	for (int i = 0; i < delivery->batch->n; i++)
	{
		OutMessage *message = &delivery->batch->messages[i];

		if (message->fate == FATE_OPEN && crashed)
			message->suspect = poison_suspect(&message->id);
		if (message->fate == FATE_OPEN || message->fate == FATE_ALONE)
			message->fate = FATE_LEFT;
	}
	delivery->open = 0;
	delivery->nready = 0;
}

/* Hands over those whose turn has come, unless they have to wait all the same */
static void
hand_over_ready(Delivery *delivery)
{
	int			n = delivery->nready;

	delivery->nready = 0;
	if (n == 0 || delivery->purged || delivery->finished != NULL ||
		delivery->worker->bridge == NULL)
		return;
	for (int i = 0; i < n; i++)
	{
		OutMessage *message = &delivery->batch->messages[delivery->ready[i]];

		if (message->fate == FATE_BEHIND && waiting_mark(message) == NULL)
			hand_over(delivery, delivery->ready[i]);
	}
	bridge_flush(delivery->worker->bridge);
}

static void
take_events(Delivery *delivery)
{
	BridgeEvent event;

	while (worker_next_event(delivery->worker, &event))
	{
		if (event.type != BRIDGE_OUTCOMES)
			publisher_event(delivery->worker, &event);
		else
		{
			int			acknowledged = 0;

			for (int i = 0; i < event.noutcomes; i++)
			{
				settle(delivery, &event.outcomes[i]);
				acknowledged += event.outcomes[i].class == OUTCOME_OK;
			}
			poison_acknowledged(acknowledged);
			if (!delivery->purged)
				extend_deadline(delivery, outbox_ack_timeout);
		}
	}
	hand_over_ready(delivery);
}

/* Waits until every message in the bridge has an outcome, or the bridge died */
static void
await_outcomes(Delivery *delivery)
{
	Worker	   *worker = delivery->worker;

	bridge_flush(worker->bridge);
	if (delivery->handed_over != NULL)
		delivery->handed_over(delivery->handed_over_arg);
	delivery->handed_over = NULL;
	if (worker->bridge == NULL)
		leave_open(delivery);
	delivery->purged = false;
	extend_deadline(delivery, outbox_ack_timeout);
	while (delivery->open > 0)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
														   delivery->deadline);

		if (left <= 0 && delivery->purged)
			worker_bridge_failed(worker, "stopped: it gave no outcomes after a purge");
		else if (left <= 0)
		{
			bridge_purge(worker->bridge);
			delivery->purged = true;
			extend_deadline(delivery, PURGE_TIMEOUT);
			continue;
		}
		else
			worker_wait(worker, left, true);
		take_events(delivery);
		if (worker->bridge == NULL)
			leave_open(delivery);
	}
}

/* Sends one message by itself; what its request was blamed for is its own now */
static void
deliver_alone(Delivery *delivery, int index)
{
	OutMessage *message = &delivery->batch->messages[index];
	Held	   *held = waiting_mark(message);

	/* one before it failed: it must not overtake that */
	if (held != NULL)
	{
		leave(message, held);
		return;
	}
	for (int tries = 0; tries < CORRUPT_TRIES && message->fate == FATE_ALONE; tries++)
	{
		hand_over(delivery, index);
		await_outcomes(delivery);
		if (message->fate == FATE_ALONE && message->class == OUTCOME_REQUEST_REJECTED)
			break;
	}
	if (message->fate == FATE_ALONE)
		message->fate = FATE_DEAD;
}

/* Those that an answer to a whole request has brought into doubt */
static void
deliver_rejected(Delivery *delivery)
{
	Batch	   *batch = delivery->batch;
	bool		left = false;

	/* where one is left, those after it are, too: they must not overtake it */
	for (int i = 0; i < batch->n && delivery->worker->bridge != NULL && !left; i++)
	{
		if (batch->messages[i].fate != FATE_ALONE || batch->messages[i].suspect != NULL)
			continue;
		deliver_alone(delivery, i);
		left = batch->messages[i].fate == FATE_LEFT && waiting_mark(&batch->messages[i]) == NULL;
	}
}

/* Has one before it, of its topic and key, still to go? */
static bool
is_behind(const Batch *batch, int index)
{
	const BridgeRecord *record = &batch->messages[index].record;

	for (int i = 0; i < index; i++)
	{
		const OutMessage *message = &batch->messages[i];

		if (message->fate != FATE_SENT &&
			(message->fate != FATE_DEAD || message->in_chain) &&
			message->record.key_len == record->key_len &&
			memcmp(message->record.key, record->key, record->key_len) == 0 &&
			strcmp(message->record.topic, record->topic) == 0)
			return true;
	}
	return false;
}

/*
 * The next suspect to go alone, -1 if there is none: in order, but those that
 * were caught last, and of these first the one that was so the longest ago.
 */
static int
next_suspect(const Batch *batch)
{
	int			next = -1;

	for (int i = 0; i < batch->n; i++)
	{
		const OutMessage *message = &batch->messages[i];

		if (message->suspect == NULL || message->fate != FATE_ALONE)
			continue;
		if (!message->suspect->caught)
			return i;
		if (next < 0 ||
			message->suspect->tried_at < batch->messages[next].suspect->tried_at)
			next = i;
	}
	return next;
}

/* One at a time, so that it is known which one a bridge dies on */
static void
deliver_suspects(Delivery *delivery)
{
	Batch	   *batch = delivery->batch;
	Worker	   *worker = delivery->worker;
	TimestampTz start = GetCurrentTimestamp();
	int			index;

	while (worker->bridge != NULL && delivery->finished == NULL &&
		   (index = next_suspect(batch)) >= 0)
	{
		OutMessage *message = &batch->messages[index];

		delivery->alone_since = GetCurrentTimestamp();
		if (is_behind(batch, index) ||
			TimestampDifferenceExceeds(start, delivery->alone_since, SUSPECTS_TIME))
		{
			message->fate = FATE_LEFT;
			continue;
		}
		delivery->alone = message;
		worker->bridge_at_risk = message->suspect->caught;
		deliver_alone(delivery, index);
		delivery->alone = NULL;
		worker->bridge_at_risk = false;
	}
}

void
batch_deliver(Batch *batch, Worker *worker, BatchHandedOver handed_over, void *arg)
{
	Delivery	delivery = {.batch = batch, .worker = worker, .handed_over = handed_over,
	.handed_over_arg = arg};

	delivery.ready = MemoryContextAlloc(batch->context, Max(batch->n, 1) * sizeof(int));
	for (int i = 0; i < batch->n; i++)
	{
		const OutMessage *message = &batch->messages[i];

		if (message->suspect == NULL && message->fate != FATE_BEHIND)
			hand_over(&delivery, i);
	}
	if (delivery.open > 0)
		await_outcomes(&delivery);
	deliver_rejected(&delivery);
	deliver_suspects(&delivery);
	for (int i = 0; i < batch->n; i++)
	{
		OutMessage *message = &batch->messages[i];

		if (message->fate == FATE_ALONE || message->fate == FATE_BEHIND)
			message->fate = FATE_LEFT;
		if (message->suspect != NULL && (message->fate == FATE_SENT || message->fate == FATE_DEAD))
			poison_settled(message->suspect);
	}
	if (delivery.finished != NULL && worker->bridge != NULL)
	{
		char	   *how = psprintf("stopped after a fatal error of the Kafka client: %s",
								   delivery.finished);

		worker_bridge_failed(worker, how);
		pfree(how);
	}
	if (worker->bridge == NULL)
		leave_open(&delivery);
}
