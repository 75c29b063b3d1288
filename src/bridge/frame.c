/*-------------------------------------------------------------------------
 *
 * frame.c
 *	  Frames: how a worker and its bridge cut the stream of bytes between them.
 *
 * Lack of memory and bad input are remembered, not raised: both ends have
 * their own ways of dying.
 *
 *-------------------------------------------------------------------------
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* explicit_bzero */
#endif

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "frame.h"

#define FRAME_HEADER		4	/* the length */
#define BUFFER_MIN			(64 * 1024)
/* An empty buffer larger than this is given back */
#define BUFFER_KEEP			(2 * 1024 * 1024)

static bool buffer_grow(unsigned char **data, size_t *size, size_t used, size_t needed);
static unsigned char *out_space(FrameOut *out, size_t len);
static void out_compact(FrameOut *out);
static void store_u32(unsigned char *at, uint32_t value);
static uint32_t load_u32(const unsigned char *at);
static const unsigned char *take(FrameReader *reader, size_t len);

/*
 * Makes room for "needed" bytes.  Not realloc: what it leaves behind might be
 * a secret, and nobody could clear it any more.
 */
static bool
buffer_grow(unsigned char **data, size_t *size, size_t used, size_t needed)
{
	size_t		newsize = *size ? *size : BUFFER_MIN;
	unsigned char *newdata;

	while (newsize < needed)
		newsize *= 2;
	newdata = malloc(newsize);
	if (newdata == NULL)
		return false;
	if (*data != NULL)
	{
		memcpy(newdata, *data, used);
		explicit_bzero(*data, used);
		free(*data);
	}
	*data = newdata;
	*size = newsize;
	return true;
}

static void
store_u32(unsigned char *at, uint32_t value)
{
	at[0] = (unsigned char) value;
	at[1] = (unsigned char) (value >> 8);
	at[2] = (unsigned char) (value >> 16);
	at[3] = (unsigned char) (value >> 24);
}

static uint32_t
load_u32(const unsigned char *at)
{
	return (uint32_t) at[0] | (uint32_t) at[1] << 8 |
		(uint32_t) at[2] << 16 | (uint32_t) at[3] << 24;
}

/*---- writing ----*/

/* Moves what isn't sent yet to the front, and gives back what isn't needed */
static void
out_compact(FrameOut *out)
{
	if (out->sent == 0 || out->secret > 0)
		return;
	memmove(out->data, out->data + out->sent, out->end - out->sent);
	out->end -= out->sent;
	if (out->open)
		out->start -= out->sent;
	out->sent = 0;
	if (out->end == 0 && out->size > BUFFER_KEEP)
	{
		free(out->data);
		out->data = NULL;
		out->size = 0;
	}
}

static unsigned char *
out_space(FrameOut *out, size_t len)
{
	unsigned char *space;

	if (out->failed)
		return NULL;
	if (out->end + len > out->size && out->sent > out->size / 2)
		out_compact(out);
	if (out->end + len > out->size &&
		!buffer_grow(&out->data, &out->size, out->end, out->end + len))
	{
		out->failed = true;
		return NULL;
	}
	space = out->data + out->end;
	out->end += len;
	return space;
}

/* Starts a frame, ending the one before it */
void
frame_begin(FrameOut *out, uint8_t type)
{
	unsigned char *space;

	frame_end(out);
	space = out_space(out, FRAME_HEADER + 1);
	if (space == NULL)
		return;
	space[FRAME_HEADER] = type;
	out->start = (size_t) (space - out->data);
	out->open = true;
}

/* Starts an item of a grouped frame, in the open frame if that will do */
void
frame_item(FrameOut *out, uint8_t type)
{
	if (!out->open || out->failed ||
		out->data[out->start + FRAME_HEADER] != type ||
		out->end - out->start >= FRAME_GROUP)
		frame_begin(out, type);
}

void
frame_end(FrameOut *out)
{
	if (!out->open)
		return;
	out->open = false;
	if (!out->failed)
		store_u32(out->data + out->start,
				  (uint32_t) (out->end - out->start - FRAME_HEADER));
}

/* Everything written so far is to be cleared once it is sent */
void
frame_secret(FrameOut *out)
{
	frame_end(out);
	out->secret = out->end;
}

void
put_u8(FrameOut *out, uint8_t value)
{
	unsigned char *space = out_space(out, 1);

	if (space != NULL)
		*space = value;
}

void
put_u32(FrameOut *out, uint32_t value)
{
	unsigned char *space = out_space(out, 4);

	if (space != NULL)
		store_u32(space, value);
}

void
put_u64(FrameOut *out, uint64_t value)
{
	put_u32(out, (uint32_t) value);
	put_u32(out, (uint32_t) (value >> 32));
}

void
put_string(FrameOut *out, const char *value)
{
	put_string_len(out, value, strlen(value));
}

void
put_string_len(FrameOut *out, const char *value, size_t len)
{
	unsigned char *space = out_space(out, 4 + len + 1);

	if (space == NULL)
		return;
	store_u32(space, (uint32_t) len);
	memcpy(space + 4, value, len);
	space[4 + len] = '\0';
}

void
put_blob(FrameOut *out, const void *value, int32_t len)
{
	unsigned char *space;

	if (value == NULL)
	{
		put_u32(out, (uint32_t) -1);
		return;
	}
	space = out_space(out, 4 + (size_t) len);
	if (space == NULL)
		return;
	store_u32(space, (uint32_t) len);
	memcpy(space + 4, value, (size_t) len);
}

/* How many bytes of finished frames wait for the socket */
size_t
frame_out_pending(const FrameOut *out)
{
	return (out->open ? out->start : out->end) - out->sent;
}

/*
 * Writes what the socket takes, finished frames only.  Never blocks, never
 * raises SIGPIPE.
 */
FrameIO
frame_out_write(FrameOut *out, int fd)
{
	if (out->failed)
		return FRAME_IO_NOMEM;
	while (frame_out_pending(out) > 0)
	{
		ssize_t		n = send(fd, out->data + out->sent, frame_out_pending(out),
							 MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0)
		{
			if (errno == EINTR)
				continue;
			if (errno == EAGAIN || errno == EWOULDBLOCK)
				return FRAME_IO_AGAIN;
			return FRAME_IO_CLOSED;
		}
		out->sent += (size_t) n;
		if (out->secret > 0 && out->sent >= out->secret)
		{
			explicit_bzero(out->data, out->secret);
			out->secret = 0;
		}
	}
	out_compact(out);
	return FRAME_IO_OK;
}

void
frame_out_free(FrameOut *out)
{
	if (out->data != NULL && out->secret > 0)
		explicit_bzero(out->data, out->end);
	free(out->data);
	memset(out, 0, sizeof(*out));
}

/*---- reading ----*/

/* Reads what the socket has, "max" bytes or so at most */
FrameIO
frame_in_read(FrameIn *in, int fd, size_t max)
{
	size_t		total = 0;

	/*
	 * Handed-out frames are done with: the caller is back for more.  What is
	 * left moves when it is less than these, so that no byte moves often.
	 */
	if (in->start > in->end - in->start)
	{
		memmove(in->data, in->data + in->start, in->end - in->start);
		in->end -= in->start;
		in->start = 0;
	}
	if (in->end == 0 && in->size > BUFFER_KEEP)
		frame_in_free(in);

	while (total < max)
	{
		ssize_t		n;

		if (in->end == in->size &&
			!buffer_grow(&in->data, &in->size, in->end, in->end + BUFFER_MIN))
			return FRAME_IO_NOMEM;
		n = recv(fd, in->data + in->end, in->size - in->end, MSG_DONTWAIT);
		if (n == 0)
			return FRAME_IO_CLOSED;
		if (n < 0)
		{
			if (errno == EINTR)
				continue;
			if (errno == EAGAIN || errno == EWOULDBLOCK)
				return FRAME_IO_AGAIN;
			return FRAME_IO_CLOSED;
		}
		in->end += (size_t) n;
		total += (size_t) n;
	}
	return FRAME_IO_OK;
}

/*
 * The next whole frame, if it has arrived.  The reader points into the
 * buffer: it is good until the next frame_in_read.
 */
FrameStatus
frame_next(FrameIn *in, FrameReader *reader)
{
	size_t		have = in->end - in->start;
	uint32_t	len;

	if (have < FRAME_HEADER)
		return FRAME_NONE;
	len = load_u32(in->data + in->start);
	if (len == 0 || len > FRAME_MAX)
		return FRAME_MALFORMED;
	if (have - FRAME_HEADER < len)
		return FRAME_NONE;
	reader->next = in->data + in->start + FRAME_HEADER + 1;
	reader->end = reader->next + (len - 1);
	reader->type = in->data[in->start + FRAME_HEADER];
	reader->bad = false;
	in->start += FRAME_HEADER + len;
	return FRAME_OK;
}

/* Clears the frames handed out so far: they held secrets */
void
frame_in_forget(FrameIn *in)
{
	explicit_bzero(in->data, in->start);
}

void
frame_in_free(FrameIn *in)
{
	free(in->data);
	memset(in, 0, sizeof(*in));
}

static const unsigned char *
take(FrameReader *reader, size_t len)
{
	const unsigned char *at = reader->next;

	if (reader->bad || (size_t) (reader->end - at) < len)
	{
		reader->bad = true;
		return NULL;
	}
	reader->next = at + len;
	return at;
}

uint8_t
get_u8(FrameReader *reader)
{
	const unsigned char *at = take(reader, 1);

	return at ? *at : 0;
}

uint32_t
get_u32(FrameReader *reader)
{
	const unsigned char *at = take(reader, 4);

	return at ? load_u32(at) : 0;
}

uint64_t
get_u64(FrameReader *reader)
{
	const unsigned char *at = take(reader, 8);

	return at ? load_u32(at) | (uint64_t) load_u32(at + 4) << 32 : 0;
}

/* A string that ends where its length says; "" if the frame is bad */
const char *
get_string(FrameReader *reader)
{
	size_t		len = get_u32(reader);
	const unsigned char *at = take(reader, len + 1);

	if (at == NULL)
		return "";
	if (at[len] != '\0' || memchr(at, '\0', len) != NULL)
	{
		reader->bad = true;
		return "";
	}
	return (const char *) at;
}

/* Bytes, or NULL and a length of -1; NULL and 0 if the frame is bad */
const void *
get_blob(FrameReader *reader, int32_t *len)
{
	uint32_t	length = get_u32(reader);
	const unsigned char *at;

	*len = -1;
	if (length == (uint32_t) -1 && !reader->bad)
		return NULL;
	at = take(reader, length);
	*len = at ? (int32_t) length : 0;
	return at;
}

/* Is there a further item in this grouped frame? */
bool
frame_more(const FrameReader *reader)
{
	return !reader->bad && reader->next < reader->end;
}

/* Was the frame read to its end, without a fault? */
bool
frame_done(const FrameReader *reader)
{
	return !reader->bad && reader->next == reader->end;
}
