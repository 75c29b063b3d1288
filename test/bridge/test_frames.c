/*-------------------------------------------------------------------------
 *
 * test_frames.c
 *	  The frames themselves: what is written is read again, and nothing that
 *	  arrives makes the reader touch memory that it doesn't own.
 *
 * Built with the address sanitizer, which is the judge of the latter.
 *
 *-------------------------------------------------------------------------
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* memmem */
#endif

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"

#define CASES	5000

static uint64_t random_state = 42;

static uint32_t next_random(void);
static void pass(FrameOut *out, FrameIn *in);
static void round_trip(void);
static void groups(void);
static void partial(void);
static void cleared(void);
static uint64_t read_anything(FrameReader *frame);
static void fuzz(void);

/* The same numbers at every run (xorshift) */
static uint32_t
next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t) (random_state >> 16);
}

/* Through a socket pair, as in life */
static void
pass(FrameOut *out, FrameIn *in)
{
	int			socks[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, socks) != 0)
		abort();
	frame_end(out);
	while (frame_out_write(out, socks[0]) == FRAME_IO_AGAIN)
		frame_in_read(in, socks[1], 1 << 20);
	frame_in_read(in, socks[1], 1 << 30);
	close(socks[0]);
	close(socks[1]);
}

static void
round_trip(void)
{
	FrameOut	out = {0};
	FrameIn		in = {0};
	FrameReader frame;
	int32_t		len;
	size_t		size = 3 * 1024 * 1024;
	char	   *large = malloc(size);

	memset(large, 'x', size);
	frame_begin(&out, 9);
	put_u8(&out, 200);
	put_u32(&out, 0xfffffffe);
	put_u64(&out, 0x8000000000000001);
	put_string(&out, "");
	put_string(&out, "text");
	put_blob(&out, NULL, 7);
	put_blob(&out, "", 0);
	put_blob(&out, large, (int32_t) size);
	pass(&out, &in);
	ok(frame_next(&in, &frame) == FRAME_OK && frame.type == 9, "a frame comes through");
	ok(get_u8(&frame) == 200 && get_u32(&frame) == 0xfffffffe &&
	   get_u64(&frame) == 0x8000000000000001, "integers");
	ok(*get_string(&frame) == '\0' && strcmp(get_string(&frame), "text") == 0, "strings");
	ok(get_blob(&frame, &len) == NULL && len == -1 && get_blob(&frame, &len) != NULL && len == 0,
	   "NULL and the empty blob");
	ok(memcmp(get_blob(&frame, &len), large, size) == 0 && len == (int32_t) size && frame_done(&frame),
	   "a large blob, and nothing after it");
	ok(get_u32(&frame) == 0 && frame.bad && get_u64(&frame) == 0 && *get_string(&frame) == '\0' &&
	   get_blob(&frame, &len) == NULL && len == 0, "beyond the end there are zeroes");
	free(large);
	frame_out_free(&out);
	frame_in_free(&in);
}

/* Items share frames until one is long, and never with another type */
static void
groups(void)
{
	FrameOut	out = {0};
	FrameIn		in = {0};
	FrameReader frame;
	uint32_t	expected = 0;
	int			frames = 0;
	int			should_be = 200000 * sizeof(uint32_t) / FRAME_GROUP + 2;
	bool		right = true;

	for (uint32_t i = 0; i < 200000; i++)
	{
		frame_item(&out, 1);
		put_u32(&out, i);
	}
	frame_item(&out, 2);
	put_u32(&out, 200000);
	pass(&out, &in);
	while (frame_next(&in, &frame) == FRAME_OK)
	{
		frames++;
		while (frame_more(&frame))
			right = right && get_u32(&frame) == expected++;
	}
	ok(right && expected == 200001 && frames == should_be, "%d items in %d frames", (int) expected, frames);
	frame_out_free(&out);
	frame_in_free(&in);
}

/* A frame cut off anywhere is no frame yet; an impossible length is told */
static void
partial(void)
{
	FrameOut	out = {0};
	bool		right = true;
	unsigned char zero[5] = {0, 0, 0, 0, 1};
	unsigned char huge[5] = {1, 0, 0, 4, 1};
	unsigned char largest[5] = {0, 0, 0, 4, 1};
	FrameIn		in = {0};
	FrameReader frame;

	frame_begin(&out, 1);
	put_string(&out, "something");
	frame_end(&out);
	for (size_t cut = 0; cut < out.end; cut++)
	{
		in.data = malloc(cut ? cut : 1);
		in.size = in.end = cut;
		in.start = 0;
		memcpy(in.data, out.data, cut);
		right = right && frame_next(&in, &frame) == FRAME_NONE;
		free(in.data);
	}
	ok(right, "a part of a frame is none");
	in = (FrameIn) {zero, 5, 0, 5};
	ok(frame_next(&in, &frame) == FRAME_MALFORMED, "a frame has a type at least");
	in = (FrameIn) {huge, 5, 0, 5};
	ok(frame_next(&in, &frame) == FRAME_MALFORMED, "no frame is longer than the limit");
	in = (FrameIn) {largest, 5, 0, 5};
	ok(frame_next(&in, &frame) == FRAME_NONE, "one may be as long as the limit");
	frame_out_free(&out);
}

/* What was secret is gone from memory once sent */
static void
cleared(void)
{
	FrameOut	out = {0};
	FrameIn		in = {0};
	FrameReader frame;
	bool		found;

	frame_begin(&out, 1);
	put_string(&out, "hunter2");
	frame_secret(&out);
	frame_begin(&out, 2);
	put_string(&out, "public");
	pass(&out, &in);
	found = memmem(out.data, out.size, "hunter2", 7) != NULL;
	ok(!found, "a secret is cleared where it was written");
	ok(frame_next(&in, &frame) == FRAME_OK && strcmp(get_string(&frame), "hunter2") == 0,
	   "it arrives");
	frame_in_forget(&in);
	ok(memmem(in.data, in.end, "hunter2", 7) == NULL, "and is cleared where it was read");
	ok(frame_next(&in, &frame) == FRAME_OK && strcmp(get_string(&frame), "public") == 0,
	   "what follows is left alone");
	frame_out_free(&out);
	frame_in_free(&in);
}

/* Reads in any order, touching all that it is given */
static uint64_t
read_anything(FrameReader *frame)
{
	uint64_t	sum = 0;

	for (int i = 0; i < 40 && !frame->bad; i++)
	{
		const unsigned char *bytes;
		const char *string;
		int32_t		len;

		switch (next_random() % 5)
		{
			case 0:
				sum += get_u8(frame);
				break;
			case 1:
				sum += get_u32(frame);
				break;
			case 2:
				sum += get_u64(frame);
				break;
			case 3:
				string = get_string(frame);
				sum += strlen(string);
				break;
			case 4:
				bytes = get_blob(frame, &len);
				for (int32_t b = 0; bytes != NULL && b < len; b++)
					sum += bytes[b];
				break;
		}
	}
	return sum;
}

/* Random bytes, in buffers of exactly their size, read at random */
static void
fuzz(void)
{
	uint64_t	sum = 0;
	int			frames = 0;

	for (int i = 0; i < CASES; i++)
	{
		size_t		len = next_random() % 300;
		FrameIn		in = {malloc(len ? len : 1), len, 0, len};
		FrameReader frame;

		for (size_t b = 0; b < len; b++)
			in.data[b] = (unsigned char) (next_random() % 4 ? next_random() % 8 : next_random());
		/* Most begin like a frame that is all there */
		if (len > 8 && i % 4)
		{
			in.data[0] = (unsigned char) (len - 4);
			in.data[1] = (unsigned char) ((len - 4) >> 8);
			in.data[2] = in.data[3] = 0;
		}
		while (frame_next(&in, &frame) == FRAME_OK)
		{
			frames++;
			sum += read_anything(&frame);
		}
		free(in.data);
	}
	ok(frames > CASES / 4, "%d frames of random bytes read (%llu)", frames,
	   (unsigned long long) sum);
}

void
test_frames(void)
{
	round_trip();
	groups();
	partial();
	cleared();
	fuzz();
}
