/*-------------------------------------------------------------------------
 *
 * helper.c
 *	  Threads for the questions that librdkafka answers only by blocking.
 *
 * The main thread must answer a PING at any time, so that it may not wait for
 * a broker.  One thread asks for metadata, another for watermarks: a broker
 * that hangs while asked for the one must not delay the other.  Answers come
 * back through a list and the eventfd that the main thread sleeps on.
 *
 *-------------------------------------------------------------------------
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"

/* How long another broker may take where one keeps silent */
#define LEADER_TIMEOUT_MS	1000

typedef struct Question
{
	struct Question *next;
	Topic	   *topic;			/* metadata; NULL: are the brokers there? */
	MetadataAnswer metadata;
	int			nleaders;
	LedPartition leaders[LEADERS_TRIED];
	bool		watch;			/* watermarks */
	uint32_t	tag;
	char	   *topic_name;
	int32_t		partition;
	int64_t		time;			/* -1: not asked */
	int64_t		low;
	int64_t		high;
	int64_t		at_time;
	rd_kafka_resp_err_t err;
} Question;

typedef struct QuestionList
{
	Question   *first;
	Question  **last;
} QuestionList;

typedef struct Helper
{
	pthread_cond_t wakeup;
	QuestionList questions;
	void		(*answer) (Question *question);
} Helper;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static QuestionList answers = {NULL, &answers.first};
static Helper metadata_helper;
static Helper watch_helper;
static bool probing;			/* main thread only */
static bool contacted;			/* metadata thread only */

static void append(QuestionList *list, Question *question);
static Question *remove_first(QuestionList *list);
static void start_thread(Helper *helper, void (*answer) (Question *));
static void *run(void *arg);
static void ask(Helper *helper, Question *question);
static void answer_metadata(Question *question);
static bool another_answers(const Question *question);
static void answer_watch(Question *question);
static void find_time(Question *question);
static void copy_metadata(MetadataAnswer *answer, const rd_kafka_metadata_topic_t *topic);
static void report_watch(const Question *question);

static void
append(QuestionList *list, Question *question)
{
	question->next = NULL;
	*list->last = question;
	list->last = &question->next;
}

static Question *
remove_first(QuestionList *list)
{
	Question   *question = list->first;

	if (question != NULL)
	{
		list->first = question->next;
		if (list->first == NULL)
			list->last = &list->first;
	}
	return question;
}

static void
start_thread(Helper *helper, void (*answer) (Question *))
{
	pthread_t	thread;

	pthread_cond_init(&helper->wakeup, NULL);
	helper->questions.last = &helper->questions.first;
	helper->answer = answer;
	if (pthread_create(&thread, NULL, run, helper) != 0)
		fatal("could not start a thread");
	pthread_detach(thread);
}

/* Called once, when the client exists */
void
helper_start(void)
{
	sigset_t	all;
	sigset_t	saved;

	/* Signals are the main thread's */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &saved);
	start_thread(&metadata_helper, answer_metadata);
	if (client.role == BRIDGE_CONSUMER)
		start_thread(&watch_helper, answer_watch);
	pthread_sigmask(SIG_SETMASK, &saved, NULL);
}

static void *
run(void *arg)
{
	Helper	   *helper = arg;
	const uint64_t one = 1;

	for (;;)
	{
		Question   *question;

		pthread_mutex_lock(&lock);
		while ((question = remove_first(&helper->questions)) == NULL)
			pthread_cond_wait(&helper->wakeup, &lock);
		pthread_mutex_unlock(&lock);

		helper->answer(question);

		pthread_mutex_lock(&lock);
		append(&answers, question);
		pthread_mutex_unlock(&lock);
		if (write(client.wakeup, &one, sizeof(one)) < 0)
			continue;			/* full: it is set, then */
	}
	return NULL;
}

static void
ask(Helper *helper, Question *question)
{
	pthread_mutex_lock(&lock);
	append(&helper->questions, question);
	pthread_cond_signal(&helper->wakeup);
	pthread_mutex_unlock(&lock);
}

/* Asks for a topic's metadata: topic_answered */
void
helper_ask_metadata(Topic *topic)
{
	Question   *question = xalloc(sizeof(Question));

	question->topic = topic;
	question->nleaders = topics_leaders(question->leaders, LEADERS_TRIED);
	ask(&metadata_helper, question);
}

/* Asks whether any broker is there, no topic being known */
void
helper_ask_anything(void)
{
	if (probing)
		return;
	probing = true;
	ask(&metadata_helper, xalloc(sizeof(Question)));
}

/* Asks for a partition's watermarks and, unless -1, where a time begins */
void
helper_watch(uint32_t tag, const char *topic, int32_t partition, int64_t time)
{
	Question   *question = xalloc(sizeof(Question));

	question->watch = true;
	question->tag = tag;
	question->topic_name = xstrdup(topic);
	question->partition = partition;
	question->time = time;
	ask(&watch_helper, question);
}

/*
 * Runs in the thread.  Without a topic, librdkafka asks for all that the
 * cluster has; so the first time we wait for what a new client asks anyway.
 */
static void
answer_metadata(Question *question)
{
	rd_kafka_topic_t *rkt = question->topic ? question->topic->rkt : NULL;
	const struct rd_kafka_metadata *metadata;
	MetadataAnswer *answer = &question->metadata;

	answer->npartitions = -1;
	answer->replication_factor = -1;
	if (rkt == NULL && !contacted)
	{
		char	   *id = rd_kafka_clusterid(client.rk, ANSWER_TIMEOUT_MS);

		contacted = true;
		answer->err = id ? RD_KAFKA_RESP_ERR_NO_ERROR : RD_KAFKA_RESP_ERR__TIMED_OUT;
		if (id != NULL)
			rd_kafka_mem_free(client.rk, id);
		return;
	}

	contacted = true;
	answer->err = rd_kafka_metadata(client.rk, 0, rkt, &metadata, ANSWER_TIMEOUT_MS);
	if (answer->err == RD_KAFKA_RESP_ERR__TIMED_OUT)
		answer->others_answer = another_answers(question);
	if (answer->err != RD_KAFKA_RESP_ERR_NO_ERROR)
		return;
	if (question->topic != NULL && metadata->topic_cnt > 0)
		copy_metadata(answer, &metadata->topics[0]);
	else if (question->topic != NULL)
		answer->topic_err = RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
	rd_kafka_metadata_destroy(metadata);
}

/*
 * One broker kept silent, which proves nothing of the others.  librdkafka puts
 * a question to the broker that it sent something to last, by the second; that
 * may be this one for ever.  But a question about a partition goes to its
 * leader, and who answers that will be the last.
 */
static bool
another_answers(const Question *question)
{
	for (int i = 0; i < question->nleaders && question->nleaders > 1; i++)
	{
		const LedPartition *led = &question->leaders[i];
		int64_t		low;
		int64_t		high;
		rd_kafka_resp_err_t err;

		err = rd_kafka_query_watermark_offsets(client.rk, led->topic, led->partition,
											   &low, &high, LEADER_TIMEOUT_MS);
		if (err == RD_KAFKA_RESP_ERR_NO_ERROR || err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
			return true;
	}
	return false;
}

/* The brokers may list partitions in any order */
static void
copy_metadata(MetadataAnswer *answer, const rd_kafka_metadata_topic_t *topic)
{
	answer->topic_err = topic->err;
	if (topic->err != RD_KAFKA_RESP_ERR_NO_ERROR || topic->partition_cnt <= 0)
	{
		if (topic->err == RD_KAFKA_RESP_ERR_NO_ERROR)
			answer->topic_err = RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE;
		return;
	}
	answer->npartitions = topic->partition_cnt;
	answer->leaders = malloc((size_t) topic->partition_cnt * sizeof(int32_t));
	if (answer->leaders == NULL)
	{
		/* Only the main thread may say that it dies of that */
		answer->err = RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE;
		return;
	}
	memset(answer->leaders, -1, (size_t) topic->partition_cnt * sizeof(int32_t));
	for (int i = 0; i < topic->partition_cnt; i++)
	{
		const rd_kafka_metadata_partition_t *partition = &topic->partitions[i];

		if (partition->id >= 0 && partition->id < topic->partition_cnt)
			answer->leaders[partition->id] = partition->leader;
		if (partition->replica_cnt > answer->replication_factor)
			answer->replication_factor = partition->replica_cnt;
	}
}

/* Runs in the thread */
static void
answer_watch(Question *question)
{
	question->err = rd_kafka_query_watermark_offsets(client.rk, question->topic_name,
													 question->partition,
													 &question->low, &question->high,
													 ANSWER_TIMEOUT_MS);
	question->at_time = -1;
	if (question->err == RD_KAFKA_RESP_ERR_NO_ERROR && question->time >= 0)
		find_time(question);
}

/*
 * The end of the log must be known before: a record that comes between the two
 * questions is found by this one, or lies behind that end.
 */
static void
find_time(Question *question)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_topic_partition_t *asked;

	asked = rd_kafka_topic_partition_list_add(list, question->topic_name, question->partition);
	asked->offset = question->time;
	question->err = rd_kafka_offsets_for_times(client.rk, list, ANSWER_TIMEOUT_MS);
	if (question->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		question->err = asked->err;
	question->at_time = asked->offset >= 0 ? asked->offset : question->high;
	rd_kafka_topic_partition_list_destroy(list);
}

static void
report_watch(const Question *question)
{
	if (question->err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		consume_error(question->tag, question->err, -1, rd_kafka_err2str(question->err));
		return;
	}
	frame_begin(&client.out, FRAME_WATERMARKS);
	put_u32(&client.out, question->tag);
	put_u64(&client.out, (uint64_t) question->low);
	put_u64(&client.out, (uint64_t) question->high);
	put_u64(&client.out, (uint64_t) question->at_time);
	frame_end(&client.out);
}

/* Passes on the answers that have come */
void
helper_serve(void)
{
	for (;;)
	{
		Question   *question;

		pthread_mutex_lock(&lock);
		question = remove_first(&answers);
		pthread_mutex_unlock(&lock);
		if (question == NULL)
			return;
		if (question->watch)
			report_watch(question);
		else if (question->topic != NULL)
			topic_answered(question->topic, &question->metadata);
		else
		{
			probing = false;
			client_metadata_answered(question->metadata.err);
		}
		free(question->topic_name);
		free(question);
	}
}
