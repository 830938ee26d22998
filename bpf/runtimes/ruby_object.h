/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * runtimes/ruby_object.h - the object of the request that a thread of Puma works for, read in the
 * memory of Ruby.
 *
 * The first method of a thread of Puma's pool has the connection (Puma::Client) in a local variable:
 * `work`, which is nil while the thread waits. The connection has its socket as second instance
 * variable: @to_io. Nothing is taken on trust: the descriptor there has to be that of a connection on
 * which this process has read a request.
 */
#ifndef THROUGHLINE_RUNTIMES_RUBY_OBJECT_H
#define THROUGHLINE_RUNTIMES_RUBY_OBJECT_H

#include "core/process.h"
#include "runtimes/descriptor.h"

#define TL_RUBY_FRAMES 6 /* of the stack, from its begin, in which the connection is looked for */
#define TL_RUBY_LOCALS 16 /* of each frame */
#define TL_RUBY_STACK_WORDS (1 << 20) /* more than any stack has: 1 MiB by default */

/* Offsets in bytes, which no version from 3.0 to 3.4 has changed. */
#define TL_RUBY_STACK_AT 0 /* rb_execution_context_t: vm_stack, vm_stack_size, cfp */
#define TL_RUBY_STACK_WORDS_AT 8
#define TL_RUBY_FRAME_AT 16
#define TL_RUBY_EP_AT 32 /* rb_control_frame_t.ep */
#define TL_RUBY_ENV_WORDS 3 /* at and below `ep`; below them are the local variables */
#define TL_RUBY_BASIC_BYTES 16 /* struct RBasic */
#define TL_RUBY_FD_AT 16 /* rb_io_t.fd */
#define TL_RUBY_TYPE_MASK 0x1f
#define TL_RUBY_T_OBJECT 0x01
#define TL_RUBY_T_FILE 0x0b
#define TL_RUBY_EMBEDS (1 << 13) /* ROBJECT_EMBED */

/* A value that may be the address of an object. */
static __always_inline bool tl_ruby_is_object(__u64 value)
{
	return value >= 4096 && !(value & 7);
}

/* The cookie of the socket of the object `value` of class IO; 0: it is none. */
static __always_inline __u64 tl_ruby_socket(__u64 value)
{
	__u64 number;

	if (!tl_ruby_is_object(value) ||
	    (tl_user_word(value) & TL_RUBY_TYPE_MASK) != TL_RUBY_T_FILE)
		return 0;
	number = tl_user_word(tl_user_word(value + TL_RUBY_BASIC_BYTES) + TL_RUBY_FD_AT);
	return tl_descriptor_socket(number);
}

/*
 * The cookie of the socket that is the second instance variable of the object `value`; 0: there is
 * none. `version`: that of Ruby, 31 for 3.1. A global function, which verifiers walk once.
 */
__noinline __u64 tl_ruby_connection(__u64 value, __u32 version)
{
	__u64 flags, variables = value + TL_RUBY_BASIC_BYTES;

	asm volatile("" ::"r"(value), "r"(version));
	if (!tl_ruby_is_object(value))
		return 0;
	flags = tl_user_word(value);
	if ((flags & TL_RUBY_TYPE_MASK) != TL_RUBY_T_OBJECT)
		return 0;
	/* before 3.2 their number stands before the pointer */
	if (!(flags & TL_RUBY_EMBEDS))
		variables = tl_user_word(variables + (version < 32 ? 8 : 0));
	return tl_ruby_socket(tl_user_word(variables + 8));
}

/* The same for the local variables of the frame at `frame`. A global function, as above. */
__noinline __u64 tl_ruby_local(__u64 frame, __u32 version)
{
	__u64 ep = tl_user_word(frame + TL_RUBY_EP_AT), cookie = 0;
	__u32 i;

	asm volatile("" ::"r"(version));
	for (i = 0; i < TL_RUBY_LOCALS && !cookie; i++)
		cookie =
			tl_ruby_connection(tl_user_word(ep - (TL_RUBY_ENV_WORDS + i) * 8), version);
	return cookie;
}

/* Is the current thread one of Puma's pool, by its name? `puma srv tp 001`, since Puma 5. */
static __always_inline bool tl_ruby_in_pool(const __u64 name[2])
{
	return (name[0] & 0xffffffffffULL) == 0x20616d7570ULL && (__u32)name[1] == 0x20707420;
}

/* Is there a rb_execution_context_t? It has the bounds of a stack, and a place in it. */
static __always_inline bool tl_ruby_is_context(__u64 context)
{
	__u64 stack = tl_user_word(context + TL_RUBY_STACK_AT);
	__u64 words = tl_user_word(context + TL_RUBY_STACK_WORDS_AT);
	__u64 frame = tl_user_word(context + TL_RUBY_FRAME_AT);

	return stack && words < TL_RUBY_STACK_WORDS && frame > stack && frame < stack + words * 8;
}

/*
 * The address of the rb_execution_context_t of the current thread of Ruby, to which a thread-local
 * variable points; 0: there is none. `place`: the number of its module in the upper 16 bits, and up to
 * three offsets there, one of which it has: not every Ruby says which. A global function, as above.
 */
__noinline __u64 tl_ruby_context(__u64 place)
{
	__u64 block, context;
	__u32 i;

	asm volatile("" ::"r"(place));
	/* the table has 16 bytes for each module */
	block = tl_user_word(tl_user_word(tl_thread_pointer() + TL_DTV_AT) + (place >> 48) * 16);
	for (i = 0; i < 3; i++) {
		context = tl_user_word(block + (place & 0xffff));
		if (context && tl_ruby_is_context(context))
			return context;
		place >>= 16;
	}
	return 0;
}

/* The cookie of the connection that the current thread works for, or 0. A global function, as above. */
__noinline __u64 tl_ruby_works_for(__u64 place, __u32 version)
{
	__u64 context = tl_ruby_context(place), top, frame, cookie = 0;
	__u32 i, bytes = version == 31 || version == 32 ? 64 : 56; /* rb_control_frame_t */

	if (!context)
		return 0;
	top = tl_user_word(context + TL_RUBY_STACK_AT) +
	      tl_user_word(context + TL_RUBY_STACK_WORDS_AT) * 8;
	frame = tl_user_word(context + TL_RUBY_FRAME_AT);
	/* the last one, where the stack begins, is none of a method */
	for (i = 2; i < 2 + TL_RUBY_FRAMES && !cookie; i++) {
		if (top - i * bytes < frame)
			break;
		cookie = tl_ruby_local(top - i * bytes, version);
	}
	return cookie;
}

#endif
