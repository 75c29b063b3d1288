/*-------------------------------------------------------------------------
 *
 * test_version.c
 *	  Which versions of librdkafka are warned of, and that the bridge says it.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "client.h"
#include "harness.h"

/* A release; a candidate has less in its last byte */
#define RELEASE(a, b, c)	((a) << 24 | (b) << 16 | (c) << 8 | 0xff)
#define CANDIDATE(a, b, c)	((a) << 24 | (b) << 16 | (c) << 8 | 1)

#define REPEAT		1
#define CRASH		2
#define RETURN		4

static const struct
{
	int			version;
	int			faults;
}			versions[] =
{
	{RELEASE(1, 9, 2), 0},
	{RELEASE(2, 0, 2), 0},
	{RELEASE(2, 1, 1), 0},
	{CANDIDATE(2, 2, 0), REPEAT},
	{RELEASE(2, 2, 0), REPEAT},
	{RELEASE(2, 3, 0), REPEAT},
	{RELEASE(2, 4, 0), REPEAT | CRASH},
	{CANDIDATE(2, 5, 0), CRASH},
	{RELEASE(2, 5, 0), CRASH},
	{RELEASE(2, 6, 1), CRASH},
	{RELEASE(2, 8, 0), CRASH},
	{RELEASE(2, 10, 0), RETURN},
	{RELEASE(2, 10, 1), 0},
	{RELEASE(2, 15, 0), 0},
	{RELEASE(3, 0, 0), 0},
};

static int	faults_in(const char *text);
static void version_said(void);

static int
faults_in(const char *text)
{
	int			faults = 0;

	if (strstr(text, "fail to repeat a large request (mended in 2.5.0)") != NULL)
		faults |= REPEAT;
	if (strstr(text, "can crash") != NULL && strstr(text, "(mended in 2.10.0)") != NULL)
		faults |= CRASH;
	if (strstr(text, "may not return to the brokers") != NULL &&
		strstr(text, "(mended in 2.10.1)") != NULL)
		faults |= RETURN;
	return faults;
}

/* In answer to HELLO */
static void
version_said(void)
{
	Child	   *child = child_start();
	char		text[512];

	version_faults(rd_kafka_version(), text, sizeof(text));
	frame_begin(&child->out, FRAME_HELLO);
	put_u32(&child->out, BRIDGE_PROTOCOL);
	put_string(&child->out, OUTBOX_BUILD);
	put_u8(&child->out, 'p');
	child_send(child);
	if (expect(child, FRAME_WELCOME, 5000))
	{
		get_u32(&child->frame);
		get_string(&child->frame);
		get_string(&child->frame);
		ok(strcmp(get_string(&child->frame), text) == 0 && frame_done(&child->frame),
		   "WELCOME says what is wrong with %s: \"%s\"", rd_kafka_version_str(), text);
	}
	else
		ok(false, "HELLO is answered");
	child_stop(child);
}

void
test_version(void)
{
	char		text[512];
	char		small[16];

	for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++)
	{
		version_faults(versions[i].version, text, sizeof(text));
		ok(faults_in(text) == versions[i].faults &&
		   (versions[i].faults != 0) == (text[0] != '\0'),
		   "version %08x: \"%s\"", (unsigned) versions[i].version, text);
	}
	memset(small, 'x', sizeof(small));
	version_faults(RELEASE(2, 4, 0), small, sizeof(small) - 1);
	ok(strlen(small) == sizeof(small) - 2 && small[sizeof(small) - 1] == 'x',
	   "a text that doesn't fit is cut: \"%s\"", small);
	version_said();
}
