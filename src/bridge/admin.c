/*-------------------------------------------------------------------------
 *
 * admin.c
 *	  Requests of Kafka's admin API: topics made, min.insync.replicas read.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>

#include "client.h"

#define DESCRIBE_TIMEOUT_MS	1000
#define CREATE_TIMEOUT_MS	15000
/* A broker that doesn't tell settings isn't asked again for so long */
#define DESCRIBE_AGAIN_MS	60000

typedef struct Request
{
	Topic	   *described;		/* NULL: a topic is being created */
	uint64_t	number;
} Request;

static int64_t describe_after;

static rd_kafka_AdminOptions_t *make_options(rd_kafka_admin_op_t operation,
											 Request *request, int timeout_ms);
static void done(uint64_t request, const char *error, const char *text);
static void described(Topic *topic, rd_kafka_event_t *event);
static void created(uint64_t request, rd_kafka_event_t *event);

static rd_kafka_AdminOptions_t *
make_options(rd_kafka_admin_op_t operation, Request *request, int timeout_ms)
{
	rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(client.rk, operation);
	char		text[256];

	rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, text, sizeof(text));
	rd_kafka_AdminOptions_set_opaque(options, request);
	return options;
}

/*
 * Asks for a topic's settings, and reports the topic once they have come or
 * were refused.  False if they can't be asked for.
 */
bool
admin_describe(Topic *topic)
{
	rd_kafka_ConfigResource_t *resource;
	rd_kafka_AdminOptions_t *options;
	Request    *request;

	if (now_ms() < describe_after)
		return false;
	resource = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, topic->name);
	if (resource == NULL)
		return false;
	request = xalloc(sizeof(Request));
	request->described = topic;
	topic->asked = false;
	options = make_options(RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, request, DESCRIBE_TIMEOUT_MS);
	rd_kafka_DescribeConfigs(client.rk, &resource, 1, options, client.main_queue);
	rd_kafka_AdminOptions_destroy(options);
	rd_kafka_ConfigResource_destroy(resource);
	return true;
}

/* CREATE_TOPIC */
void
admin_create_topic(FrameReader *frame)
{
	uint64_t	number = get_u64(frame);
	const char *name = get_string(frame);
	int32_t		partitions = (int32_t) get_u32(frame);
	int32_t		replication_factor = (int32_t) get_u32(frame);
	rd_kafka_NewTopic_t *topic;
	rd_kafka_AdminOptions_t *options;
	Request    *request;
	char		text[512];

	if (frame->bad)
		return;
	topic = rd_kafka_NewTopic_new(name, partitions, replication_factor, text, sizeof(text));
	if (topic == NULL)
	{
		while (frame_more(frame))
			get_string(frame);
		done(number, error_name(RD_KAFKA_RESP_ERR__INVALID_ARG), text);
		return;
	}
	while (frame_more(frame))
	{
		const char *setting = get_string(frame);
		const char *value = get_string(frame);

		if (!frame->bad)
			rd_kafka_NewTopic_set_config(topic, setting, value);
	}

	request = xalloc(sizeof(Request));
	request->number = number;
	options = make_options(RD_KAFKA_ADMIN_OP_CREATETOPICS, request, CREATE_TIMEOUT_MS);
	rd_kafka_AdminOptions_set_operation_timeout(options, CREATE_TIMEOUT_MS / 3, text, sizeof(text));
	rd_kafka_CreateTopics(client.rk, &topic, 1, options, client.main_queue);
	rd_kafka_AdminOptions_destroy(options);
	rd_kafka_NewTopic_destroy(topic);
}

/* Takes an event of the main queue that is the result of a request */
void
admin_event(rd_kafka_event_t *event)
{
	Request    *request;

	switch (rd_kafka_event_type(event))
	{
		case RD_KAFKA_EVENT_CREATETOPICS_RESULT:
			request = rd_kafka_event_opaque(event);
			created(request->number, event);
			free(request);
			break;
		case RD_KAFKA_EVENT_DESCRIBECONFIGS_RESULT:
			request = rd_kafka_event_opaque(event);
			described(request->described, event);
			free(request);
			break;
		default:
			break;				/* nothing we asked for */
	}
}

static void
described(Topic *topic, rd_kafka_event_t *event)
{
	const rd_kafka_DescribeConfigs_result_t *result = rd_kafka_event_DescribeConfigs_result(event);
	const rd_kafka_ConfigResource_t **resources = NULL;
	const rd_kafka_ConfigEntry_t **entries = NULL;
	size_t		nresources = 0;
	size_t		nentries = 0;

	topic->min_insync_replicas = -1;
	if (rd_kafka_event_error(event) == RD_KAFKA_RESP_ERR_NO_ERROR)
		resources = rd_kafka_DescribeConfigs_result_resources(result, &nresources);
	if (nresources == 1 && rd_kafka_ConfigResource_error(resources[0]) == RD_KAFKA_RESP_ERR_NO_ERROR)
		entries = rd_kafka_ConfigResource_configs(resources[0], &nentries);
	if (nentries == 0)
		describe_after = now_ms() + DESCRIBE_AGAIN_MS;
	for (size_t i = 0; i < nentries; i++)
	{
		const char *value = rd_kafka_ConfigEntry_value(entries[i]);

		if (value != NULL &&
			strcmp(rd_kafka_ConfigEntry_name(entries[i]), "min.insync.replicas") == 0)
			topic->min_insync_replicas = atoi(value);
	}
	topic_report(topic);
}

static void
created(uint64_t request, rd_kafka_event_t *event)
{
	rd_kafka_resp_err_t err = rd_kafka_event_error(event);
	const char *text = rd_kafka_event_error_string(event);
	const rd_kafka_topic_result_t **topics;
	size_t		n = 0;

	if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		topics = rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event), &n);
		if (n == 1)
		{
			err = rd_kafka_topic_result_error(topics[0]);
			text = rd_kafka_topic_result_error_string(topics[0]);
		}
	}
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR && text == NULL)
		text = rd_kafka_err2str(err);
	done(request, error_name(err), err ? text : "");
}

static void
done(uint64_t request, const char *error, const char *text)
{
	frame_begin(&client.out, FRAME_ADMIN_DONE);
	put_u64(&client.out, request);
	put_string(&client.out, error);
	put_string(&client.out, text);
	frame_end(&client.out);
}
