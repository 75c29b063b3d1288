/*-------------------------------------------------------------------------
 *
 * topic_config.c
 *	  What outbox.set_topic said of a topic, as a publisher remembers it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"

#include "announce.h"
#include "relation.h"
#include "store.h"
#include "topic_config.h"

PG_FUNCTION_INFO_V1(outbox_config_changed);

static HTAB *configs = NULL;
static HTAB *key_holders = NULL;	/* the topics with hold_key_when_dead */
static Oid	config_relid = InvalidOid;
static bool stale = true;

static void
config_inval(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == config_relid)
		stale = true;
}

void
topic_config_init(void)
{
	CacheRegisterRelcacheCallback(config_inval, (Datum) 0);
}

static void
load_key_holders(void)
{
	HASHCTL		ctl = {0};
	uint64		rows;

	if (key_holders != NULL)
		hash_destroy(key_holders);
	ctl.keysize = ctl.entrysize = OUTBOX_TOPIC_LEN + 1;
	key_holders = hash_create("outbox topics that hold keys", 16, &ctl,
							  HASH_ELEM | HASH_STRINGS);
	rows = store_execute("SELECT topic FROM outbox.topic_config WHERE hold_key_when_dead",
						 0, NULL, NULL, NULL);
	for (uint64 i = 0; i < rows; i++)
	{
		char		topic[OUTBOX_TOPIC_LEN + 1] = {0};

		strlcpy(topic, SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1),
				sizeof(topic));
		hash_search(key_holders, topic, HASH_ENTER, NULL);
	}
}

static void
load(void)
{
	HASHCTL		ctl = {0};
	uint64		rows;

	if (configs != NULL)
		hash_destroy(configs);
	ctl.keysize = OUTBOX_TOPIC_LEN + 1;
	ctl.entrysize = sizeof(TopicConfig);
	configs = hash_create("outbox topics", 64, &ctl, HASH_ELEM | HASH_STRINGS);

	rows = store_execute("SELECT topic, result_topic,"
						 " (EXTRACT(epoch FROM result_timeout) * 1000000)::bigint,"
						 " coalesce(max_attempts, 0)"
						 " FROM outbox.topic_config WHERE result_topic IS NOT NULL",
						 0, NULL, NULL, NULL);
	for (uint64 i = 0; i < rows; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		char		topic[OUTBOX_TOPIC_LEN + 1] = {0};
		bool		isnull;
		TopicConfig *config;

		strlcpy(topic, SPI_getvalue(tuple, desc, 1), sizeof(topic));
		config = hash_search(configs, topic, HASH_ENTER, NULL);
		strlcpy(config->result_topic, SPI_getvalue(tuple, desc, 2),
				sizeof(config->result_topic));
		config->result_timeout = DatumGetInt64(SPI_getbinval(tuple, desc, 3, &isnull));
		config->max_attempts = DatumGetInt32(SPI_getbinval(tuple, desc, 4, &isnull));
	}
}

void
topic_config_distrust(void)
{
	stale = true;
}

bool
topic_config_refresh(void)
{
	if (!stale)
		return false;
	stale = false;
	config_relid = outbox_relation_oid("topic_config");
	load();
	load_key_holders();
	return true;
}

const TopicConfig *
topic_config_find(const char *topic)
{
	return hash_search(configs, topic, HASH_FIND, NULL);
}

bool
topic_config_holds_keys(const char *topic)
{
	return hash_get_num_entries(key_holders) > 0 &&
		hash_search(key_holders, topic, HASH_FIND, NULL) != NULL;
}

static int
compare_timeouts(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return left < right ? -1 : left > right;
}

int64 *
topic_config_timeouts(int *n)
{
	HASH_SEQ_STATUS status;
	TopicConfig *config;
	int64	   *timeouts = palloc(Max(hash_get_num_entries(configs), 1) * sizeof(int64));
	int			unique = 0;

	*n = 0;
	hash_seq_init(&status, configs);
	while ((config = hash_seq_search(&status)) != NULL)
		timeouts[(*n)++] = config->result_timeout;
	qsort(timeouts, *n, sizeof(int64), compare_timeouts);
	for (int i = 0; i < *n; i++)
	{
		if (i == 0 || timeouts[i] != timeouts[i - 1])
			timeouts[unique++] = timeouts[i];
	}
	*n = unique;
	return timeouts;
}

int64
topic_config_patience(const TopicConfig *config, int attempts)
{
	int64		limit = Max(config->result_timeout, USECS_PER_DAY);
	int64		patience = config->result_timeout;

	for (int i = 1; i < attempts && patience < limit; i++)
		patience *= 2;
	return Min(patience, limit);
}

/*
 * outbox.config_changed(): makes the workers of this database read the topics
 * and the requests again, once this transaction has committed.
 */
Datum
outbox_config_changed(PG_FUNCTION_ARGS)
{
	CacheInvalidateRelcacheByRelid(outbox_relation_oid("topic_config"));
	announce_wake_at_commit();
	PG_RETURN_VOID();
}
