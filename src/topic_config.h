/*-------------------------------------------------------------------------
 *
 * topic_config.h
 *	  What outbox.set_topic said of a topic, as a publisher remembers it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TOPIC_CONFIG_H
#define OUTBOX_TOPIC_CONFIG_H

#include "utils/timestamp.h"

#include "outbox.h"

typedef struct TopicConfig
{
	char		topic[OUTBOX_TOPIC_LEN + 1];	/* the key: must be first */
	char		result_topic[OUTBOX_TOPIC_LEN + 1];	/* "" if none */
	int64		result_timeout; /* microseconds */
	int			max_attempts;	/* 0: for ever */
} TopicConfig;

/* Registers the invalidation callback; once a process */
extern void topic_config_init(void);

/* True if something was set, or a topic was asked for, since the last call */
extern bool topic_config_refresh(void);

/* What was read may be out of date */
extern void topic_config_distrust(void);

/* NULL if the topic expects nothing back */
extern const TopicConfig *topic_config_find(const char *topic);

/* Is it to keep a key's messages back behind one that is DEAD? */
extern bool topic_config_holds_keys(const char *topic);

/*
 * The distinct timeouts of the topics with a result topic, palloc'd,
 * ascending; n tells how many.
 */
extern int64 *topic_config_timeouts(int *n);

/* How long to wait for the result after so many publishes, in microseconds */
extern int64 topic_config_patience(const TopicConfig *config, int attempts);

#endif							/* OUTBOX_TOPIC_CONFIG_H */
