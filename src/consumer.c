/*-------------------------------------------------------------------------
 *
 * consumer.c
 *	  The consumer: reads the result topics and the subscribed ones, and
 *	  applies what they say.
 *
 * A batch is what the bridge delivered since the last one: results, or records
 * whose handlers are of one role.  Its effects, its counts and the positions
 * it was read up to are one transaction; what isn't committed is read again,
 * so that each record takes effect exactly once.  While Kafka is waited for no
 * transaction is open.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "utils/memutils.h"

#include "dead_replay.h"
#include "handler.h"
#include "outcome_handler.h"
#include "owed_call.h"
#include "read_topic.h"
#include "reading_tag.h"
#include "received.h"
#include "result_route.h"
#include "safe_text.h"
#include "subscription.h"
#include "worker.h"

/* Without any other reason to wake up, the consumer looks around this often (ms) */
#define LOOK_INTERVAL	10000

/* ... and where a subscription waits for somebody to repair it (ms) */
#define REPAIR_INTERVAL	1000

#define FINISHED_DELAY_MIN	100
#define FINISHED_DELAY_MAX	30000

/* It was loaded, and the topics to read are not adapted to it yet */
static bool config_loaded = false;

static bool look_at_database(Worker *worker);
static void pay_debts(Worker *worker, TimestampTz *wake);
static bool work(Worker *worker, TimestampTz *wake);
static void notice_bridge(Worker *worker);
static bool take_events(Worker *worker);
static void take_partition_event(Worker *worker, const BridgeEvent *event);
static void client_finished(Worker *worker, const char *text);
static bool anything_to_load(void);

/*
 * The main loop: look, work, sleep.  Whatever wakes it, it looks at the
 * database first, for that may be why; looking costs microseconds.
 */
void
consumer_main(Worker *worker)
{
	received_init();
	handlers_init();
	routes_init();
	subscriptions_init();

	for (;;)
	{
		TimestampTz wake = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   LOOK_INTERVAL);
		bool		more = false;

		if (!look_at_database(worker))
			notice_bridge(worker);
		else
		{
			if (nread_topics > 0)
				more = work(worker, &wake);
			else
			{
				worker_bridge_drop(worker, "stopped: there is no topic to read");
				worker_set_state(worker, "no topics to read");
			}
			pay_debts(worker, &wake);
		}
		worker_wait(worker, more ? 0 :
					TimestampDifferenceMilliseconds(GetCurrentTimestamp(), wake), false);
	}
}

/* False if the worker has to rest: worker_begin has said why */
static bool
look_at_database(Worker *worker)
{
	if (!worker_begin(worker))
	{
		/* after a rest nothing is as it was */
		read_topics_unload(worker->bridge);
		routes_distrust();
		return false;
	}
	consumer_load_config();
	subscriptions_check();
	if (config_loaded)
	{
		read_topics_sync(worker->bridge);
		read_topics_compare(worker->bridge);
	}
	config_loaded = false;
	read_topics_block(worker->bridge);
	read_topics_load();
	worker_commit(worker);
	return true;
}

void
consumer_load_config(void)
{
	if (!routes_stale())
		return;
	routes_load();
	subscriptions_load();
	outcome_handlers_load();
	owed_calls_distrust();
	dead_replays_distrust();
	config_loaded = true;
}

/*
 * Calls that are owed, and dead records to be handled again: one at a time,
 * that records don't wait for them.  One consumer does it for all.
 */
static void
pay_debts(Worker *worker, TimestampTz *wake)
{
	TimestampTz now = GetCurrentTimestamp();

	if (worker->number != 0 || !outbox_enabled)
		return;
	if (owed_calls_due() <= now)
		owed_calls_step(worker);
	if (dead_replays_due() <= now)
		dead_replays_step(worker);
	*wake = Min(*wake, Max(now, Min(owed_calls_due(), dead_replays_due())));
}

/* One turn; true if there is more to do at once */
static bool
work(Worker *worker, TimestampTz *wake)
{
	bool		may_work = worker_may_work(worker);
	bool		more;

	notice_bridge(worker);
	more = take_events(worker);
	received_apply(worker);

	if (subscriptions_troubled())
		*wake = Min(*wake, TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   REPAIR_INTERVAL));
	if (may_work && worker->bridge != NULL)
	{
		read_topics_serve(worker->bridge, GetCurrentTimestamp(), wake);
		bridge_push(worker->bridge);
		read_topics_show(worker);
	}
	else if (worker->brokers_up)
		return true;			/* they came up just now */
	else if (worker->bridge_not_before > GetCurrentTimestamp())
		*wake = Min(*wake, worker->bridge_not_before);
	return more || anything_to_load();
}

/* True if the next turn's look at the database is waited for */
static bool
anything_to_load(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = read_topics_scan(&scan)) != NULL)
	{
		if (partition->state == PARTITION_UNLOADED && !read_topic_of(partition)->blocked)
			return true;
	}
	return false;
}

/* With another bridge, or none, everything is asked for anew */
static void
notice_bridge(Worker *worker)
{
	static TimestampTz noticed = 0;
	TimestampTz started = worker->bridge ? worker->bridge_started_at : 0;

	if (started != noticed)
		read_topics_forget_bridge();
	noticed = started;
}

/* ---------------------------------------------------------------------
 * What the bridge says
 * --------------------------------------------------------------------- */

/* Takes events until there are none, or the batch is full: true */
static bool
take_events(Worker *worker)
{
	BridgeEvent event;

	while (!received_full())
	{
		if (!worker_next_event(worker, &event))
			return false;
		switch (event.type)
		{
			case BRIDGE_BROKERS:
				if (event.up)
					read_topics_verify_soon();
				break;
			case BRIDGE_TOPIC:
				/* it may make partitions go that the batch points to */
				received_apply(worker);
				if (worker->bridge == NULL)
					return false;
				read_topic_answer(worker, &event);
				break;
			case BRIDGE_RECORD:
			case BRIDGE_CAUGHT_UP:
			case BRIDGE_PARTITION_ERROR:
			case BRIDGE_WATERMARKS:
				take_partition_event(worker, &event);
				break;
			default:
				break;
		}
	}
	return true;
}

static void
take_partition_event(Worker *worker, const BridgeEvent *event)
{
	Partition  *partition;
	PartitionNews news;

	if (!received_make_room(worker, event))
		return;

	/* there may be something under way from a reading that has ended */
	partition = reading_tag_owner(event->tag);
	if (partition == NULL)
		return;
	if (event->type == BRIDGE_PARTITION_ERROR)
	{
		if (event->error_class == PARTITION_CLIENT_FINISHED)
		{
			client_finished(worker, event->text);
			return;
		}
		if (event->error_class == PARTITION_TOPIC_MISSING ||
			event->error_class == PARTITION_TOPIC_DENIED)
		{
			read_topic_refused(worker, partition, event);
			return;
		}
	}
	else if (event->type != BRIDGE_WATERMARKS)
		read_topic_proved(partition);

	news = partition_event(partition, worker->bridge, event);
	if (news != PARTITION_NO_NEWS)
		received_take(partition, event, news);
}

/* librdkafka's client is of no more use */
static void
client_finished(Worker *worker, const char *text)
{
	char		why[WORKER_TEXT_LEN];

	safe_text_printf(why, sizeof(why), "the Kafka client has failed: %s", text);
	worker_set_error(worker, why);
	ereport(LOG, (errmsg_internal("%s", why)));
	(void) worker_bridge_back_off(worker, FINISHED_DELAY_MIN, FINISHED_DELAY_MAX);
	worker_bridge_drop(worker, why);
}
