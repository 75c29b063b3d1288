/*-------------------------------------------------------------------------
 *
 * bridge_event.c
 *	  What the bridge says, as events for its worker.
 *
 * What the frames mean is written in bridge/protocol.h.  The bridge may end
 * at any time; then its last words, or how it ended, are the text of
 * BRIDGE_DIED, after everything that it said before.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>
#include <sys/wait.h>

#include "bridge_private.h"
#include "safe_text.h"

static bool died(Bridge *bridge, BridgeEvent *event, const char *cause);
static const char *get_text(FrameReader *frame);
static const char *decode(Bridge *bridge, BridgeEvent *event, bool *produced);
static const char *decode_welcome(Bridge *bridge, BridgeEvent *event);
static void decode_outcomes(Bridge *bridge, BridgeEvent *event);
static void decode_topic(Bridge *bridge, BridgeEvent *event);
static void decode_record(Bridge *bridge, BridgeEvent *event);

/* Not one that somebody has sent, as far as the number tells */
static bool
is_fault(int sig)
{
	return sig != SIGKILL && sig != SIGTERM && sig != SIGINT && sig != SIGHUP && sig != SIGQUIT;
}

/*
 * Ends the child, if it hasn't ended, and says how it did.  One that is
 * already ending keeps its own status: SIGKILL comes too late then.
 */
bool
bridge_reap(Bridge *bridge, char *text, size_t size)
{
	int			status;
	pid_t		rc;

	if (bridge->pid == 0)
		return false;
	kill(bridge->pid, SIGKILL);
	do
	{
		rc = waitpid(bridge->pid, &status, 0);
	} while (rc < 0 && errno == EINTR);
	bridge->pid = 0;

	if (text == NULL)
		return false;
	if (rc < 0)
		snprintf(text, size, "ended for an unknown reason");
	else if (WIFSIGNALED(status))
		snprintf(text, size, "terminated by signal %d: %s",
				 WTERMSIG(status), pg_strsignal(WTERMSIG(status)));
	else if (bridge->last_words[0] != '\0')
		snprintf(text, size, "exited with status %d: %s",
				 WEXITSTATUS(status), bridge->last_words);
	else
		snprintf(text, size, "exited with status %d", WEXITSTATUS(status));
	return rc >= 0 && (!WIFSIGNALED(status) || is_fault(WTERMSIG(status)));
}

/* Makes BRIDGE_DIED; cause: why it has to go, NULL if it went by itself */
static bool
died(Bridge *bridge, BridgeEvent *event, const char *cause)
{
	char		ending[1100] = "";
	bool		by_itself = bridge_reap(bridge, ending, sizeof(ending));

	bridge->closed = true;
	bridge->dead = true;
	strlcpy(bridge->text, cause ? cause : ending, sizeof(bridge->text));
	memset(event, 0, sizeof(*event));
	event->type = BRIDGE_DIED;
	event->crashed = cause == NULL && by_itself;
	event->text = bridge->text;
	return true;
}

/*
 * Takes the next event off the input.  A bridge that says something we don't
 * understand is not to be trusted with anything more.
 */
bool
bridge_next_event(Bridge *bridge, BridgeEvent *event)
{
	memset(event, 0, sizeof(*event));
	if (bridge->dead)
		return false;

	for (;;)
	{
		bool		produced = false;
		const char *fault;

		if (!frame_more(&bridge->frame))
		{
			switch (frame_next(&bridge->in, &bridge->frame))
			{
				case FRAME_NONE:
					memset(&bridge->frame, 0, sizeof(bridge->frame));
					bridge->drained = bridge->in.end - bridge->in.start;
					if (!bridge->closed)
						return false;
					return died(bridge, event, bridge->hung ?
								"killed, since it didn't answer for 5 seconds" : NULL);
				case FRAME_MALFORMED:
					return died(bridge, event, "killed, since it sent a frame of an impossible length");
				case FRAME_OK:
					break;
			}
		}
		fault = decode(bridge, event, &produced);
		if (fault != NULL)
			return died(bridge, event, fault);
		if (produced)
			return true;
	}
}

/* A text to be shown.  The frame is ours, so it is mended where it stands. */
static const char *
get_text(FrameReader *frame)
{
	const char *text = get_string(frame);

	safe_text(unconstify(char *, text));
	return text;
}

/* Reads a frame, or a record of one; returns what is wrong with it, or NULL */
static const char *
decode(Bridge *bridge, BridgeEvent *event, bool *produced)
{
	FrameReader *frame = &bridge->frame;
	const char *fault = NULL;

	*produced = true;
	if (!bridge->ready && frame->type != FRAME_WELCOME && frame->type != FRAME_FATAL)
		return "killed, since it didn't answer HELLO first";
	switch (frame->type)
	{
		case FRAME_WELCOME:
			fault = decode_welcome(bridge, event);
			if (fault != NULL)
				return fault;
			break;
		case FRAME_FATAL:
			/* Its end of the socket closes next */
			safe_text_copy(bridge->last_words, get_text(frame), sizeof(bridge->last_words));
			*produced = false;
			break;
		case FRAME_PONG:
			get_u32(frame);
			*produced = false;
			break;
		case FRAME_OUTCOMES:
			decode_outcomes(bridge, event);
			break;
		case FRAME_BROKERS:
			event->type = BRIDGE_BROKERS;
			event->up = get_u8(frame) != 0;
			event->text = get_text(frame);
			break;
		case FRAME_TOPIC:
			decode_topic(bridge, event);
			break;
		case FRAME_RECORDS:
			decode_record(bridge, event);
			if (frame_more(frame))
				return NULL;	/* the rest at the next call */
			break;
		case FRAME_CAUGHT_UP:
			event->type = BRIDGE_CAUGHT_UP;
			event->tag = get_u32(frame);
			event->offset = (int64) get_u64(frame);
			break;
		case FRAME_PARTITION_ERROR:
			event->type = BRIDGE_PARTITION_ERROR;
			event->tag = get_u32(frame);
			event->error_class = get_u8(frame);
			event->offset = (int64) get_u64(frame);
			event->error = get_string(frame);
			event->text = get_text(frame);
			break;
		case FRAME_WATERMARKS:
			event->type = BRIDGE_WATERMARKS;
			event->tag = get_u32(frame);
			event->low = (int64) get_u64(frame);
			event->high = (int64) get_u64(frame);
			event->at_time = (int64) get_u64(frame);
			break;
		case FRAME_ADMIN_DONE:
			event->type = BRIDGE_ADMIN_DONE;
			event->request = get_u64(frame);
			event->error = get_string(frame);
			event->text = get_text(frame);
			break;
		case FRAME_LOG:
			event->type = BRIDGE_LOG;
			event->level = get_u8(frame);
			event->text = get_text(frame);
			break;
		default:
			frame->bad = true;
			break;
	}
	return frame_done(frame) ? NULL : "killed, since it sent a malformed frame";
}

/* The answer to HELLO */
static const char *
decode_welcome(Bridge *bridge, BridgeEvent *event)
{
	FrameReader *frame = &bridge->frame;
	uint32		protocol = get_u32(frame);
	const char *build = get_string(frame);

	if (bridge->ready)
		return "killed, since it answered HELLO twice";
	if (protocol != BRIDGE_PROTOCOL || strcmp(build, OUTBOX_BUILD) != 0)
	{
		snprintf(bridge->last_words, sizeof(bridge->last_words),
				 "killed, since it is of build %.100s, protocol %u, and its worker of build %s, protocol %d",
				 build, protocol, OUTBOX_BUILD, BRIDGE_PROTOCOL);
		return bridge->last_words;
	}
	safe_text_copy(bridge->version, get_string(frame), sizeof(bridge->version));
	safe_text_copy(bridge->version_faults, get_string(frame), sizeof(bridge->version_faults));
	bridge->ready = true;
	event->type = BRIDGE_READY;
	event->text = bridge->version;
	return NULL;
}

static void
decode_outcomes(Bridge *bridge, BridgeEvent *event)
{
	FrameReader *frame = &bridge->frame;
	int			n = 0;

	while (frame_more(frame))
	{
		BridgeOutcome *outcome;

		if (n == bridge->max_outcomes)
		{
			int			newmax = Max(1024, bridge->max_outcomes * 2);
			Size		size = mul_size(newmax, sizeof(BridgeOutcome));

			bridge->outcomes = bridge->outcomes ?
				repalloc_huge(bridge->outcomes, size) :
				MemoryContextAllocHuge(bridge->context, size);
			bridge->max_outcomes = newmax;
		}
		outcome = &bridge->outcomes[n++];
		outcome->index = get_u32(frame);
		outcome->class = get_u8(frame);
		outcome->persisted = get_u8(frame);
		outcome->partition = (int32) get_u32(frame);
		outcome->partitions = (int32) get_u32(frame);
		outcome->offset = (int64) get_u64(frame);
		outcome->error = get_string(frame);
		outcome->detail = get_text(frame);
		if (outcome->class > OUTCOME_UNKNOWN || outcome->persisted > PERSISTED_YES)
			frame->bad = true;
	}
	event->type = BRIDGE_OUTCOMES;
	event->noutcomes = n;
	event->outcomes = bridge->outcomes;
}

static void
decode_topic(Bridge *bridge, BridgeEvent *event)
{
	FrameReader *frame = &bridge->frame;
	int			n = 0;

	event->type = BRIDGE_TOPIC;
	event->topic = get_string(frame);
	event->topic_class = get_u8(frame);
	event->error = get_string(frame);
	event->text = get_text(frame);
	event->partitions = (int32) get_u32(frame);
	event->leaderless = (int32) get_u32(frame);
	event->replication_factor = (int32) get_u32(frame);
	event->min_insync_replicas = (int32) get_u32(frame);

	/* The number is the bridge's word: room is made as they are read */
	while (n < event->leaderless && !frame->bad)
	{
		if (n == bridge->max_leaderless)
		{
			int			newmax = Max(64, bridge->max_leaderless * 2);
			Size		size = mul_size(newmax, sizeof(int32));

			bridge->leaderless = bridge->leaderless ?
				repalloc_huge(bridge->leaderless, size) :
				MemoryContextAllocHuge(bridge->context, size);
			bridge->max_leaderless = newmax;
		}
		bridge->leaderless[n++] = (int32) get_u32(frame);
	}
	event->leaderless_partitions = bridge->leaderless;
}

static void
decode_record(Bridge *bridge, BridgeEvent *event)
{
	FrameReader *frame = &bridge->frame;
	BridgeRecord *record = &event->record;
	uint32		nheaders;
	int			n = 0;

	event->type = BRIDGE_RECORD;
	event->tag = get_u32(frame);
	record->topic = get_string(frame);
	record->partition = (int32) get_u32(frame);
	record->offset = (int64) get_u64(frame);
	record->end = (int64) get_u64(frame);
	record->timestamp = (int64) get_u64(frame);
	record->key = get_blob(frame, &record->key_len);
	record->value = get_blob(frame, &record->value_len);
	event->offset = record->offset;

	/* The number is the bridge's word: room is made as headers are read */
	nheaders = get_u32(frame);
	while (n < nheaders && !frame->bad)
	{
		BridgeHeader *header;

		if (n == bridge->max_headers)
		{
			int			newmax = Max(64, bridge->max_headers * 2);
			Size		size = mul_size(newmax, sizeof(BridgeHeader));

			bridge->headers = bridge->headers ?
				repalloc_huge(bridge->headers, size) :
				MemoryContextAllocHuge(bridge->context, size);
			bridge->max_headers = newmax;
		}
		header = &bridge->headers[n++];
		header->name = get_string(frame);
		header->value = get_blob(frame, &header->len);
	}
	record->nheaders = n;
	record->headers = bridge->headers;
}
