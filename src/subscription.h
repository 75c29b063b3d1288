/*-------------------------------------------------------------------------
 *
 * subscription.h
 *	  What outbox.subscribe said, as a consumer remembers it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SUBSCRIPTION_H
#define OUTBOX_SUBSCRIPTION_H

#include "handler.h"
#include "partition.h"

typedef struct Subscription
{
	const char *topic;
	Handler		handler;
	const char *reply_topic;	/* NULL: none */
	StartPosition start;
	int			max_attempts;
	bool		dead_letter;	/* dead records go to a topic of their own, too */
	int			assigned;		/* partitions when it was first read; -1: it wasn't */
	int64		assigned_at;	/* when that was, in milliseconds since 1970 */
	bool		assigned_now;	/* since the configuration was loaded */
	char	   *trouble;		/* why it can't be handled; NULL if it can */
	int			one_by_one;		/* so many records are, before it is tried
								 * together again */
	int			last_one_by_one;	/* how many that were the last time */
} Subscription;

/* What is behind the name of the topic that dead records go to */
#define DEAD_LETTER_SUFFIX	"-dlt"

/* Makes what its handlers depend on be noticed; once a process */
extern void subscriptions_init(void);

/* Reads the configuration; needs a transaction and SPI */
extern void subscriptions_load(void);

/*
 * Looks again whether the handlers can be called, if anything happened that
 * may have changed it.  Needs a transaction.
 */
extern void subscriptions_check(void);

/* Resolves the handler; NULL, or why the records can't be handled, palloc'd */
extern const char *subscription_trouble(Subscription *subscription);

/* True if some handler can't be called now */
extern bool subscriptions_troubled(void);

/* All of them, by topic; valid until the next subscriptions_load */
extern int	subscriptions(Subscription **list);

/* NULL if there is none */
extern Subscription *subscription_find(const char *topic);

/* Notes how many partitions the topic has that is read for the first time */
extern void subscription_assign(Subscription *subscription, int partitions);

/*
 * Where it begins in a partition that has no position.  "latest" is where the
 * log ended when the topic was assigned, also if that was not written down.
 */
extern StartPosition subscription_start(const Subscription *subscription, int partition);

#endif							/* OUTBOX_SUBSCRIPTION_H */
