/*-------------------------------------------------------------------------
 *
 * helper.c
 *	  Threads for the questions that librdkafka answers only by blocking.
 *
 * The main thread must answer a PING at any time, so that it may not wait for
 * a broker.  One thread asks for metadata, another for watermarks: a broker
 * that hangs while asked for the one must not delay the other.  Watermarks that
 * the worker wants at the same time are asked for together.  Answers come
 * back through a list and the eventfd that the main thread sleeps on.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "question.h"

/* How long another broker may take where one keeps silent */
#define LEADER_TIMEOUT_MS	1000

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
static QuestionList watches = {NULL, &watches.first};	/* to be asked; main thread only */
static bool probing;			/* main thread only */
static bool contacted;			/* metadata thread only */

static void start_thread(Helper *helper, void (*answer) (Question *));
static void take_questions(Helper *helper, QuestionList *taken);
static void give_answers(QuestionList *list);
static void *run(void *arg);
static void ask(Helper *helper, Question *question);
static void ask_watches(void);
static void answer_metadata(Question *question);
static bool another_answers(const Question *question);
static void copy_metadata(MetadataAnswer *answer, const rd_kafka_metadata_topic_t *topic);

void
question_append(QuestionList *list, Question *question)
{
	question->next = NULL;
	*list->last = question;
	list->last = &question->next;
}

Question *
question_take(QuestionList *list)
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
		start_thread(&watch_helper, watch_answer);
	pthread_sigmask(SIG_SETMASK, &saved, NULL);
}

/* Those that can be asked together with the first one, under the lock */
static void
take_its_like(Helper *helper, const Question *first, QuestionList *taken)
{
	QuestionList others = {NULL, &others.first};
	Question   *question;
	int			n = 1;

	while ((question = question_take(&helper->questions)) != NULL)
	{
		bool		alike = n < QUESTIONS_TOGETHER && question->leader == first->leader;

		question_append(alike ? taken : &others, question);
		n += alike;
	}
	while ((question = question_take(&others)) != NULL)
		question_append(&helper->questions, question);
}

/*
 * Waits for questions and takes one, the watch helper with it others that the
 * same broker answers: one that hangs delays those of another once, not often.
 */
static void
take_questions(Helper *helper, QuestionList *taken)
{
	Question   *question;

	pthread_mutex_lock(&lock);
	while ((question = question_take(&helper->questions)) == NULL)
		pthread_cond_wait(&helper->wakeup, &lock);
	question_append(taken, question);
	if (helper == &watch_helper)
		take_its_like(helper, question, taken);
	pthread_mutex_unlock(&lock);
}

/* Leaves the list empty */
static void
give_answers(QuestionList *list)
{
	const uint64_t one = 1;
	Question   *question;

	if (list->first == NULL)
		return;
	pthread_mutex_lock(&lock);
	while ((question = question_take(list)) != NULL)
		question_append(&answers, question);
	pthread_mutex_unlock(&lock);
	if (write(client.wakeup, &one, sizeof(one)) < 0)
		errno = 0;				/* full: it is set, then */
}

static void *
run(void *arg)
{
	Helper	   *helper = arg;

	for (;;)
	{
		QuestionList questions = {NULL, &questions.first};
		QuestionList answered = {NULL, &answered.first};
		Question   *question;

		take_questions(helper, &questions);
		if (questions.first->next != NULL)
		{
			watch_answer_together(&questions, &answered);
			give_answers(&answered);
		}
		while ((question = question_take(&questions)) != NULL)
		{
			helper->answer(question);
			question_append(&answered, question);
			give_answers(&answered);
		}
	}
	return NULL;
}

static void
ask(Helper *helper, Question *question)
{
	pthread_mutex_lock(&lock);
	question_append(&helper->questions, question);
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

/*
 * Asks for a partition's watermarks and, unless -1, where a time begins; at the
 * latest when helper_serve is called.
 */
void
helper_watch(uint32_t tag, const char *topic, int32_t partition, int64_t time)
{
	Question   *question = xalloc(sizeof(Question));

	question->watch = true;
	question->tag = tag;
	question->topic_name = xstrdup(topic);
	question->partition = partition;
	question->leader = topic_leader(topic_get(topic), partition);
	question->time = time;
	question_append(&watches, question);
}

static void
ask_watches(void)
{
	Question   *question;

	if (watches.first == NULL)
		return;
	pthread_mutex_lock(&lock);
	while ((question = question_take(&watches)) != NULL)
		question_append(&watch_helper.questions, question);
	pthread_cond_signal(&watch_helper.wakeup);
	pthread_mutex_unlock(&lock);
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
		int64_t		end;
		rd_kafka_resp_err_t err;

		err = watch_find(led->topic, led->partition, RD_KAFKA_OFFSET_END, LEADER_TIMEOUT_MS, &end);
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

/* Asks what has gathered, and passes on the answers that have come */
void
helper_serve(void)
{
	ask_watches();
	for (;;)
	{
		Question   *question;

		pthread_mutex_lock(&lock);
		question = question_take(&answers);
		pthread_mutex_unlock(&lock);
		if (question == NULL)
			return;
		if (question->watch)
			watch_report(question);
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
