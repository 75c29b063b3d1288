/*-------------------------------------------------------------------------
 *
 * frame.h
 *	  Frames: how a worker and its bridge cut the stream of bytes between them.
 *
 * A frame is a length (4 bytes: how many follow it), a type (1 byte) and a
 * body.  All integers are little endian.  What the types mean is written in
 * protocol.h; this file knows neither PostgreSQL nor Kafka and is compiled
 * into both ends.
 *
 * Inside of a body, a string is a 4-byte length, its bytes and a zero byte
 * that the length doesn't count; a blob is a 4-byte length, -1 for NULL, and
 * its bytes.  A grouped frame holds one item after the other until its end.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_FRAME_H
#define OUTBOX_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* PostgreSQL loads libraries into one name space: keep these names out of it */
#pragma GCC visibility push(hidden)

/* Longest frame either end accepts: type and body */
#define FRAME_MAX			(64 * 1024 * 1024)
/* A grouped frame takes no further item once it is this long: a socket holds some */
#define FRAME_GROUP			(64 * 1024)

/* Frames on their way out */
typedef struct FrameOut
{
	unsigned char *data;
	size_t		size;			/* allocated */
	size_t		end;			/* used */
	size_t		sent;			/* taken by the socket */
	size_t		start;			/* of the open frame */
	size_t		secret;			/* leading bytes to be cleared once sent */
	bool		open;			/* a frame is under construction */
	bool		failed;			/* out of memory; nothing more is written */
} FrameOut;

/* Bytes on their way in */
typedef struct FrameIn
{
	unsigned char *data;
	size_t		size;
	size_t		start;			/* first byte not yet handed out */
	size_t		end;
} FrameIn;

/* A frame being read; once bad, every further read yields zeroes */
typedef struct FrameReader
{
	const unsigned char *next;
	const unsigned char *end;
	uint8_t		type;
	bool		bad;
} FrameReader;

typedef enum FrameStatus
{
	FRAME_NONE,					/* not all of it has arrived */
	FRAME_OK,
	FRAME_MALFORMED				/* a length that can't be */
} FrameStatus;

typedef enum FrameIO
{
	FRAME_IO_OK,
	FRAME_IO_AGAIN,				/* the socket takes, or has, no more */
	FRAME_IO_CLOSED,			/* end of file, or the other end is gone */
	FRAME_IO_NOMEM
} FrameIO;

/*---- writing ----*/
extern void frame_begin(FrameOut *out, uint8_t type);
extern void frame_item(FrameOut *out, uint8_t type);
extern void frame_end(FrameOut *out);
extern void frame_secret(FrameOut *out);
extern void put_u8(FrameOut *out, uint8_t value);
extern void put_u32(FrameOut *out, uint32_t value);
extern void put_u64(FrameOut *out, uint64_t value);
extern void put_string(FrameOut *out, const char *value);
extern void put_string_len(FrameOut *out, const char *value, size_t len);
extern void put_blob(FrameOut *out, const void *value, int32_t len);
extern size_t frame_out_pending(const FrameOut *out);
extern FrameIO frame_out_write(FrameOut *out, int fd);
extern void frame_out_free(FrameOut *out);

/*---- reading ----*/
extern FrameIO frame_in_read(FrameIn *in, int fd, size_t max);
extern FrameStatus frame_next(FrameIn *in, FrameReader *reader);
extern void frame_in_forget(FrameIn *in);
extern void frame_in_free(FrameIn *in);
extern uint8_t get_u8(FrameReader *reader);
extern uint32_t get_u32(FrameReader *reader);
extern uint64_t get_u64(FrameReader *reader);
extern const char *get_string(FrameReader *reader);
extern const void *get_blob(FrameReader *reader, int32_t *len);
extern bool frame_more(const FrameReader *reader);
extern bool frame_done(const FrameReader *reader);

#pragma GCC visibility pop

#endif							/* OUTBOX_FRAME_H */
