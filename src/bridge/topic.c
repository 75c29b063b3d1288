/*-------------------------------------------------------------------------
 *
 * topic.c
 *	  What the bridge knows of the topics, and its reports about them.
 *
 * librdkafka doesn't say whether it could send a record, nor where to.  So
 * the bridge keeps metadata of its own: with them it picks the partition,
 * answers at once for what can't be sent (no such topic, no leader), and
 * notices for a consumer that a topic changed.  What is known stops being
 * believed (verified) whenever something went wrong with a broker.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>

#include "client.h"

#define BUCKETS				1024

static Topic *buckets[BUCKETS];
static Topic *all_topics;

static unsigned int bucket_of(const char *name);
static rd_kafka_topic_t *open_topic(Topic *topic, const char *name);
static void learn(Topic *topic, MetadataAnswer *answer);

/* FNV-1a */
static unsigned int
bucket_of(const char *name)
{
	uint32_t	hash = 2166136261U;

	for (; *name; name++)
		hash = (hash ^ (unsigned char) *name) * 16777619U;
	return hash % BUCKETS;
}

/* librdkafka's handle, which leads back to ours; NULL for an impossible name */
static rd_kafka_topic_t *
open_topic(Topic *topic, const char *name)
{
	rd_kafka_topic_conf_t *conf = rd_kafka_default_topic_conf_dup(client.rk);
	rd_kafka_topic_t *rkt;

	rd_kafka_topic_conf_set_opaque(conf, topic);
	rkt = rd_kafka_topic_new(client.rk, name, conf);
	if (rkt == NULL)
		rd_kafka_topic_conf_destroy(conf);
	return rkt;
}

/* The topic of that name; it is never forgotten again */
Topic *
topic_get(const char *name)
{
	unsigned int bucket = bucket_of(name);
	Topic	   *topic;

	for (topic = buckets[bucket]; topic != NULL; topic = topic->chain)
	{
		if (strcmp(topic->name, name) == 0)
			return topic;
	}

	topic = xalloc(sizeof(Topic) + strlen(name) + 1);
	strcpy(topic->name, name);
	topic->npartitions = -1;
	topic->replication_factor = -1;
	topic->min_insync_replicas = -1;
	topic->rkt = open_topic(topic, name);
	if (topic->rkt == NULL)
		topic->err = RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION;
	topic->chain = buckets[bucket];
	buckets[bucket] = topic;
	topic->all = all_topics;
	all_topics = topic;
	return topic;
}

/* The head of the list of all topics */
Topic *
topic_first(void)
{
	return all_topics;
}

/* Asks for fresh metadata; topic_answered will be called */
void
topic_ask(Topic *topic)
{
	if (topic->asking || topic->rkt == NULL)
		return;
	topic->asking = true;
	helper_ask_metadata(topic);
}

void
topic_ask_for_worker(const char *name)
{
	Topic	   *topic = topic_get(name);

	if (topic->rkt == NULL)
	{
		topic_report(topic);
		return;
	}
	if (client.brokers_down)
	{
		topic_report_error(topic, RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN);
		return;
	}
	topic->asked = true;
	topic_ask(topic);
}

/*
 * Takes over what the brokers said, noting whether it is news.  To have been
 * usable all along is none.
 */
static void
learn(Topic *topic, MetadataAnswer *answer)
{
	int32_t		n = answer->npartitions;
	bool		news = topic->answered_at != 0 &&
		(topic->err != answer->topic_err || topic->npartitions != n);

	if (n > topic->allocated)
	{
		Partition  *partitions = xalloc((size_t) n * sizeof(Partition));

		if (topic->allocated > 0)
			memcpy(partitions, topic->partitions,
				   (size_t) topic->allocated * sizeof(Partition));
		free(topic->partitions);
		topic->partitions = partitions;
		topic->allocated = n;
	}
	topic->leaderless = 0;
	for (int32_t i = 0; i < n; i++)
	{
		if (i < topic->npartitions && topic->partitions[i].leader != answer->leaders[i])
			news = true;
		topic->partitions[i].leader = answer->leaders[i];
		if (answer->leaders[i] < 0)
			topic->leaderless++;
	}
	free(answer->leaders);
	if (topic->answered_at == 0)
		news = answer->topic_err != RD_KAFKA_RESP_ERR_NO_ERROR || topic->leaderless > 0;
	topic->changed |= news;
	topic->err = answer->topic_err;
	topic->npartitions = n;
	topic->replication_factor = answer->replication_factor;
	topic->answered_at = now_ms();
	topic->verified = true;
}

/* The brokers' answer, or that they gave none */
void
topic_answered(Topic *topic, MetadataAnswer *answer)
{
	topic->asking = false;
	if (answer->others_answer)
	{
		client_metadata_answered(RD_KAFKA_RESP_ERR_NO_ERROR);
		topic_ask(topic);
		return;
	}
	client_metadata_answered(answer->err);
	if (answer->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		learn(topic, answer);

	if (client.role == BRIDGE_PRODUCER)
		produce_topic_answered(topic, answer->err);
	else if (answer->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		consume_topic_answered(topic);

	if (topic->asked && answer->err)
	{
		topic->asked = false;
		topic_report_error(topic, answer->err);
	}
	else if (topic->asked && topic->err == RD_KAFKA_RESP_ERR_NO_ERROR &&
			 admin_describe(topic))
		return;					/* reports when it knows the rest */
	else if (topic->asked || topic->changed)
		topic_report(topic);
}

/* Tells the worker what is known of a topic */
void
topic_report(Topic *topic)
{
	topic->asked = false;
	topic->changed = false;
	topic_report_error(topic, topic->err);
}

/* The same, under an error that isn't the topic's own */
void
topic_report_error(const Topic *topic, rd_kafka_resp_err_t err)
{
	bool		usable = err == RD_KAFKA_RESP_ERR_NO_ERROR;

	frame_begin(&client.out, FRAME_TOPIC);
	put_string(&client.out, topic->name);
	put_u8(&client.out, (uint8_t) classify_topic(err));
	put_string(&client.out, error_name(err));
	put_string(&client.out, usable ? "" : rd_kafka_err2str(err));
	put_u32(&client.out, (uint32_t) (usable ? topic->npartitions : -1));
	put_u32(&client.out, (uint32_t) (usable ? topic->leaderless : 0));
	put_u32(&client.out, (uint32_t) (usable ? topic->replication_factor : -1));
	put_u32(&client.out, (uint32_t) (usable ? topic->min_insync_replicas : -1));
	for (int32_t i = 0; usable && i < topic->npartitions; i++)
	{
		if (topic->partitions[i].leader < 0)
			put_u32(&client.out, (uint32_t) i);
	}
	frame_end(&client.out);
}

/* -1: none, or none that is known */
int32_t
topic_leader(const Topic *topic, int32_t partition)
{
	return partition < topic->npartitions ? topic->partitions[partition].leader : -1;
}

/*
 * Partitions of different leaders, max at most: a question about one of them
 * is put to that broker.  First those of which no answer is awaited.
 */
int
topics_leaders(LedPartition *found, int max)
{
	int			n = 0;

	for (int awaited = 0; awaited <= 1; awaited++)
	{
		for (Topic *topic = all_topics; topic != NULL && n < max; topic = topic->all)
		{
			for (int32_t i = 0; i < topic->npartitions && n < max; i++)
			{
				const Partition *partition = &topic->partitions[i];
				bool		wanted = partition->leader >= 0 &&
					(partition->outstanding > 0) == awaited;

				for (int j = 0; j < n; j++)
					wanted = wanted && found[j].leader != partition->leader;
				if (wanted)
					found[n++] = (LedPartition) {topic->name, i, partition->leader};
			}
		}
	}
	return n;
}

/* Something went wrong with a broker: leaders may have changed */
void
topics_distrust(void)
{
	for (Topic *topic = all_topics; topic != NULL; topic = topic->all)
		topic->verified = false;
}
