/*-------------------------------------------------------------------------
 *
 * harness.h
 *	  A stand-in for the worker: starts a bridge and talks frames to it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BRIDGE_TEST_HARNESS_H
#define BRIDGE_TEST_HARNESS_H

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <sys/types.h>

#include "frame.h"
#include "protocol.h"

typedef struct Child
{
	pid_t		pid;
	int			fd;
	bool		eof;
	FrameOut	out;
	FrameIn		in;
	FrameReader frame;			/* the one that expect() found */
	int			pongs;			/* PONGs that came */
	char		brokers[512];	/* last BROKERS: "up", or the reason */
	char		fatal[1024];	/* FATAL */
} Child;

typedef struct Outcome
{
	uint32_t	index;
	int			class;
	int			persisted;
	int32_t		partition;
	int32_t		partitions;
	int64_t		offset;
	char		error[64];
} Outcome;

/* What a record looks like to the tests */
typedef struct TestRecord
{
	uint32_t	tag;
	char		topic[64];
	int32_t		partition;
	int64_t		offset;
	int64_t		end;
	int64_t		timestamp;
	const void *key;
	int32_t		key_len;
	const void *value;
	int32_t		value_len;
	uint32_t	nheaders;
	const char *header_name[8];
	const void *header_value[8];
	int32_t		header_len[8];
} TestRecord;

/* These crash at a topic that has both an error and partitions, as the mock's */
#define TOPIC_ERRORS_CRASH \
	(rd_kafka_version() >= 0x02060000 && rd_kafka_version() < 0x020a0000)

/* Mock clusters from then on crash at a record for a partition without leader */
#define LEADERLESS_CRASHES_MOCK	(rd_kafka_version() >= 0x02010000)

extern int	slow;				/* all patience is multiplied by this */
extern rd_kafka_mock_cluster_t *cluster;
extern const char *bootstraps;

/* TAP */
extern void ok(bool passed, const char *format,...)
			__attribute__((format(printf, 2, 3)));
extern void note(const char *format,...)
			__attribute__((format(printf, 1, 2)));
extern void skip(const char *what, const char *why);
extern int	tap_finish(void);

/* The child */
extern Child *child_start(void);
extern Child *child_start_on(int sock);
extern Child *child_hello(char role, const char *servers,...);
extern void child_send(Child *child);
extern bool child_read(Child *child, int timeout_ms);
extern bool expect(Child *child, int type, int timeout_ms);
extern int	expect_topic(Child *child, const char *name, int timeout_ms);
extern bool expect_brokers(Child *child, bool up, int timeout_ms);
extern int	child_wait(Child *child, int timeout_ms);
extern void child_stop(Child *child);
extern int64_t clock_ms(void);

/* Frames */
extern void send_record(Child *child, uint32_t index, const char *topic,
						const char *key, const char *value);
extern void send_simple(Child *child, uint8_t type);
extern int	read_outcomes(Child *child, Outcome *outcomes, int n);
extern int	collect(Child *child, Outcome *outcomes, int n, int timeout_ms);
extern bool next_record(Child *child, TestRecord *record, int timeout_ms);
extern void send_consume(Child *child, uint32_t tag, const char *topic,
						 int32_t partition, int64_t offset, bool first_only);
extern void send_tag(Child *child, uint8_t type, uint32_t tag);
extern void send_string(Child *child, uint8_t type, const char *value);

/* The groups of tests */
extern void test_frames(void);
extern void test_protocol(void);
extern void test_version(void);
extern void test_isolation(void);
extern void test_produce(void);
extern void test_outage(void);
extern void test_consume(void);

#endif							/* BRIDGE_TEST_HARNESS_H */
