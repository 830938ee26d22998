/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * go/write_grpc.h - follows a call of gRPC to the goroutine that writes its header.
 *
 *   transport.(*controlBuffer).executeAndPut  the fields of a call go into the queue of a connection
 *   transport.(*loopyWriter).writeHeader      another goroutine takes them out
 */
#ifndef THROUGHLINE_GO_WRITE_GRPC_H
#define THROUGHLINE_GO_WRITE_GRPC_H

#include "go/write.h"

#define TL_GO_FIELDS_MAX 64 /* the most fields of a call in which ours are looked for */
#define TL_GO_FIELD_BYTES 40 /* hpack.HeaderField: two strings and a bool */
#define TL_GO_PATH_AT (2 * TL_GO_FIELD_BYTES + 16) /* the value of the third field, `:path` */

/*
 * Is the field's name `traceparent` or `tracestate` (they are in lower case), or can it not be
 * read?
 */
__noinline int tl_go_field_is_ours(__u64 field)
{
	char name[16] __attribute__((aligned(8))) = {};
	__u64 string[2] = {};

	if (bpf_probe_read_user(string, sizeof(string), (void *)field))
		return 1;
	if (string[1] == 11)
		return bpf_probe_read_user(name, 11, (void *)string[0]) ||
		       tl_go_is(name, (char[16]){ "traceparent" });
	if (string[1] == 10)
		return bpf_probe_read_user(name, 10, (void *)string[0]) ||
		       tl_go_is(name, (char[16]){ "tracestate" });
	return 0;
}

/* Is it proven that a slice of fields has none of ours? */
static __always_inline bool tl_go_fields_lack_ours(const struct tl_go_slice *fields)
{
	__u32 i;

	if (fields->len > TL_GO_FIELDS_MAX)
		return false;
	for (i = 0; i < TL_GO_FIELDS_MAX && i < fields->len; i++)
		if (tl_go_field_is_ours(fields->data + TL_GO_FIELD_BYTES * i))
			return false;
	return true;
}

/*
 * (*controlBuffer).executeAndPut(c, f, it): called by clients and servers, for all that they send.
 * An earlier entry for fields at this address is removed.
 */
SEC("uprobe")
int tl_go_write_put(struct pt_regs *ctx)
{
	struct tl_go_writing fields_of = { .kind = TL_GO_WRITING_FIELDS };
	const struct tl_go_binary *binary;
	const struct tl_go_writing *call;
	struct tl_go_slice fields;
	__u64 id, key, fields_key;
	__u32 index;

	binary = tl_go_enter(ctx, &index);
	if (!binary || !TL_GO_ARG3(ctx) ||
	    tl_user_word(TL_GO_ARG3(ctx) + 8) !=
		    binary->grpc_headers_type + PT_REGS_IP(ctx) - binary->grpc_put_at)
		return 0;
	if (!tl_go_read_slice(&fields, TL_GO_ARG4(ctx) + binary->grpc_headers_hf)) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return 0;
	}
	fields_key = tl_go_object_key(fields.data);
	bpf_map_delete_elem(&tl_go_written, &fields_key);
	if (!tl_user_word(TL_GO_ARG4(ctx) + binary->grpc_headers_init))
		return 0; /* the header of an answer */
	id = tl_unit_number(TL_GO_G(ctx), binary->g_goid);
	key = tl_process_key(id);
	call = id ? bpf_map_lookup_elem(&tl_go_writers, &key) : NULL;
	if (!call || call->kind != TL_GO_WRITING_CALL)
		return 0;
	/* to fetch credentials for a call, the same goroutine may make another call */
	if (tl_user_word(fields.data + TL_GO_PATH_AT) != call->object) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return 0;
	}
	if (!tl_go_fields_lack_ours(&fields)) {
		tl_count(TL_GO_WRITE_UNPROVEN);
		return 0;
	}
	/*
	 * the entry stays: where the connection has no room for a stream the fields are put again
	 */
	fields_of.exchange = call->exchange;
	fields_of.span = call->span;
	fields_of.object = TL_GO_ARG1(ctx);
	bpf_map_update_elem(&tl_go_written, &fields_key, &fields_of, BPF_ANY);
	return 0;
}

/* (*loopyWriter).writeHeader(l, streamID, endStream, hf, onWrite): WriteHeaders follows */
SEC("uprobe")
int tl_go_write_rpc(struct pt_regs *ctx)
{
	struct tl_go_writing frame = { .kind = TL_GO_WRITING_FRAME }, writing;
	const struct tl_go_binary *binary;
	__u32 index;
	__u64 id, key;

	binary = tl_go_enter(ctx, &index);
	if (!binary || !tl_go_take(&tl_go_written, tl_go_object_key(TL_GO_ARG4(ctx)),
				   1 << TL_GO_WRITING_FIELDS, &writing))
		return 0;
	id = tl_unit_number(TL_GO_G(ctx), binary->g_goid);
	if (!id || tl_user_word(TL_GO_ARG1(ctx) + binary->grpc_loopy_cbuf) != writing.object) {
		tl_count(TL_GO_WRITE_MISMATCH);
		return 0;
	}
	frame.exchange = writing.exchange;
	frame.span = writing.span;
	frame.stream_id = TL_GO_ARG2(ctx);
	key = tl_process_key(id);
	bpf_map_update_elem(&tl_go_writers, &key, &frame, BPF_ANY);
	return 0;
}

#endif
