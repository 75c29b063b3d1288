/*-------------------------------------------------------------------------
 *
 * subscription.c
 *	  What outbox.subscribe said, as a consumer remembers it.
 *
 * Functions and roles are stored by name.  Whether they exist, and may be
 * used, is looked up when it may have changed; a subscription whose handler
 * can't be called waits until it can.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "capture.h"
#include "relation.h"
#include "store.h"
#include "subscription.h"

static MemoryContext context = NULL;
static Subscription *list = NULL;
static int	nlist = 0;

static bool check_needed = true;
static uint64 grants_seen = 0;

static void
catalog_inval(Datum arg, int cacheid, uint32 hashvalue)
{
	check_needed = true;
}

void
subscriptions_init(void)
{
	static const int caches[] = {PROCOID, NAMESPACEOID, AUTHOID, AUTHMEMROLEMEM};

	for (int i = 0; i < lengthof(caches); i++)
		CacheRegisterSyscacheCallback(caches[i], catalog_inval, (Datum) 0);
}

/* The columns of the query below */
static void
copy_subscription(HeapTuple tuple, TupleDesc desc, Subscription *subscription)
{
	bool		isnull;
	bool		no_time;
	char	   *start = SPI_getvalue(tuple, desc, 5);

	memset(subscription, 0, sizeof(Subscription));
	subscription->topic = SPI_getvalue(tuple, desc, 1);
	subscription->handler.function = SPI_getvalue(tuple, desc, 2);
	subscription->handler.role_name = SPI_getvalue(tuple, desc, 3);
	subscription->reply_topic = SPI_getvalue(tuple, desc, 4);
	subscription->start.time = DatumGetInt64(SPI_getbinval(tuple, desc, 6, &no_time));
	subscription->start.kind = !no_time ? START_TIME :
		strcmp(start, "latest") == 0 ? START_LATEST : START_EARLIEST;
	subscription->max_attempts = DatumGetInt32(SPI_getbinval(tuple, desc, 7, &isnull));
	subscription->handler.timeout = DatumGetInt32(SPI_getbinval(tuple, desc, 8, &isnull));
	subscription->dead_letter = DatumGetBool(SPI_getbinval(tuple, desc, 9, &isnull));
	subscription->assigned = DatumGetInt32(SPI_getbinval(tuple, desc, 10, &isnull));
	subscription->assigned_at = DatumGetInt64(SPI_getbinval(tuple, desc, 11, &isnull));
}

static int
compare_subscriptions(const void *a, const void *b)
{
	return strcmp(((const Subscription *) a)->topic, ((const Subscription *) b)->topic);
}

/* What was complained of stays known */
static void
keep_troubles(const Subscription *before, int n)
{
	for (int i = 0; i < n; i++)
	{
		Subscription *now = subscription_find(before[i].topic);

		if (now != NULL && before[i].trouble != NULL)
			now->trouble = MemoryContextStrdup(context, before[i].trouble);
	}
}

void
subscriptions_load(void)
{
	MemoryContext old;
	Subscription *before = palloc(Max(nlist, 1) * sizeof(Subscription));
	int			nbefore = nlist;
	uint64		n;

	for (int i = 0; i < nlist; i++)
	{
		before[i].topic = pstrdup(list[i].topic);
		before[i].trouble = list[i].trouble ? pstrdup(list[i].trouble) : NULL;
	}

	n = store_execute("SELECT topic, handler, role, reply_topic, start,"
					  " CASE WHEN start NOT IN ('earliest', 'latest') THEN"
					  "  greatest(extract(epoch FROM start::timestamptz) * 1000, 0)::bigint END,"
					  " max_attempts,"
					  " (extract(epoch FROM handler_timeout) * 1000)::int,"
					  " dead_letter, coalesce(assigned, -1),"
					  " coalesce(extract(epoch FROM assigned_at) * 1000, 0)::bigint"
					  " FROM outbox.subscription_config", 0, NULL, NULL, NULL);
	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "outbox subscriptions",
										ALLOCSET_SMALL_SIZES);
	nlist = 0;
	MemoryContextReset(context);
	old = MemoryContextSwitchTo(context);
	list = palloc(Max(n, 1) * sizeof(Subscription));
	for (nlist = 0; nlist < (int) n; nlist++)
		copy_subscription(SPI_tuptable->vals[nlist], SPI_tuptable->tupdesc, &list[nlist]);
	MemoryContextSwitchTo(old);
	qsort(list, nlist, sizeof(Subscription), compare_subscriptions);
	keep_troubles(before, nbefore);
	check_needed = true;
}

const char *
subscription_trouble(Subscription *subscription)
{
	const char *role = subscription->handler.role_name;
	const char *trouble = handler_resolve(&subscription->handler,
										  outbox_type_oid("record"));

	if (trouble != NULL)
		return trouble;
	if (!topic_may_subscribe(subscription->topic, subscription->handler.role))
		return psprintf("role \"%s\" may not subscribe to the topic", role);
	if (subscription->reply_topic != NULL &&
		!topic_may_send(subscription->reply_topic, subscription->handler.role))
		return psprintf("role \"%s\" may not send to topic \"%s\"", role,
						subscription->reply_topic);
	if (subscription->dead_letter)
	{
		char	   *topic = psprintf("%s%s", subscription->topic, DEAD_LETTER_SUFFIX);

		if (!topic_may_send(topic, subscription->handler.role))
			return psprintf("role \"%s\" may not send to topic \"%s\"", role, topic);
	}
	return NULL;
}

/* Says so where it has changed */
static void
note_trouble(Subscription *subscription, const char *trouble)
{
	char	   *before = subscription->trouble;

	if (trouble != NULL && (before == NULL || strcmp(trouble, before) != 0))
		ereport(WARNING,
				(errmsg("the subscription to topic \"%s\" is paused: %s",
						subscription->topic, trouble),
				 errdetail("It goes on by itself when that is repaired.")));
	else if (trouble == NULL && before != NULL)
		ereport(LOG,
				(errmsg("the subscription to topic \"%s\" goes on", subscription->topic)));
	subscription->trouble = trouble ? MemoryContextStrdup(context, trouble) : NULL;
	if (before != NULL)
		pfree(before);
}

void
subscriptions_check(void)
{
	if (!check_needed && grants_seen == topic_grants_generation)
		return;
	check_needed = false;
	grants_seen = topic_grants_generation;
	for (int i = 0; i < nlist; i++)
		note_trouble(&list[i], subscription_trouble(&list[i]));
}

bool
subscriptions_troubled(void)
{
	for (int i = 0; i < nlist; i++)
	{
		if (list[i].trouble != NULL)
			return true;
	}
	return false;
}

int
subscriptions(Subscription **all)
{
	*all = list;
	return nlist;
}

Subscription *
subscription_find(const char *topic)
{
	Subscription key = {.topic = topic};

	return nlist == 0 ? NULL :
		bsearch(&key, list, nlist, sizeof(Subscription), compare_subscriptions);
}

/* Another consumer may have been quicker, and have counted otherwise */
void
subscription_assign(Subscription *subscription, int partitions)
{
	static const Oid types[] = {TEXTOID, INT4OID};
	Datum		values[2] = {CStringGetTextDatum(subscription->topic),
	Int32GetDatum(partitions)};
	bool		isnull;

	subscription->assigned = partitions;
	subscription->assigned_now = true;
	if (store_execute("UPDATE outbox.subscription_config"
					  " SET assigned = $2, assigned_at = pg_catalog.clock_timestamp()"
					  " WHERE topic = $1 AND assigned IS NULL", 2, types, values, NULL) > 0 ||
		store_execute("SELECT assigned, (extract(epoch FROM assigned_at) * 1000)::bigint"
					  " FROM outbox.subscription_config"
					  " WHERE topic = $1 AND assigned IS NOT NULL", 1, types, values, NULL) == 0)
		return;
	subscription->assigned_now = false;
	subscription->assigned = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
														 SPI_tuptable->tupdesc, 1, &isnull));
	subscription->assigned_at = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
															SPI_tuptable->tupdesc, 2, &isnull));
}

StartPosition
subscription_start(const Subscription *subscription, int partition)
{
	StartPosition start = subscription->start;

	if (partition >= subscription->assigned)
		start.kind = START_EARLIEST;
	else if (start.kind == START_LATEST && !subscription->assigned_now)
	{
		start.kind = START_TIME;
		start.time = subscription->assigned_at;
	}
	return start;
}
