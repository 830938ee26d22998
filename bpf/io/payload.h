/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* io/payload.h - parses the payload of segments, in the order of the connection's bytes. */
#ifndef THROUGHLINE_IO_PAYLOAD_H
#define THROUGHLINE_IO_PAYLOAD_H

#include "io/fastcgi_packets.h"

/* The bytes of a direction are not HTTP. */
static __always_inline void tl_not_http(struct tl_flow *flow, struct tl_text *text,
					struct tl_http *http)
{
	http->state = TL_HTTP_LOST;
	if (flow->flags & TL_FLOW_USED) {
		tl_count(TL_SKIP_MALFORMED);
		return;
	}
	if (flow->role == TL_ROLE_SERVER) {
		tl_count(TL_LOST_NOT_HTTP);
	} else if (!(flow->flags & TL_FLOW_OPAQUE)) {
		tl_count(TL_SKIP_NOT_HTTP);
		flow->flags |= TL_FLOW_OPAQUE;
	}
	/* else the connection may be older than the agent, and a request may follow */
	if (!tl_is_guess(flow) || tl_is_http2(text))
		flow->role = TL_ROLE_OFF;
	else
		tl_guess_again(flow);
}

/* Parses the payload of a segment. */
static __always_inline void tl_parse_segment(struct __sk_buff *skb, struct tl_flow *flow,
					     struct tl_text *text, const struct tl_segment *segment,
					     __u32 direction)
{
	struct tl_sequence *sequence = &flow->sequence[direction & 1];
	struct tl_http *http = tl_http_of(flow, direction);
	__u64 off = segment->off;
	__u64 end = segment->off + segment->len;
	__s32 ahead;
	__u32 i;

	if (!sequence->known) {
		sequence->known = 1;
		sequence->next = segment->seq;
	}
	ahead = segment->seq - sequence->next;
	if (ahead < 0) {
		/* sent again: only the bytes behind those that were parsed are new */
		if ((__u32)-ahead >= segment->len)
			return;
		off += (__u32)-ahead;
	} else if (ahead > 0 &&
		   !(tl_is_in_fastcgi(flow) &&
		     tl_fastcgi_passes(skb, TL_GIVE_FLOW(flow, text), direction, ahead))) {
		if ((http->state == TL_HTTP_BODY || http->state == TL_HTTP_CHUNK_DATA) &&
		    http->remain > (__u32)ahead) {
			http->remain -= ahead;
		} else if (http->state < TL_HTTP_UNTIL_CLOSE) {
			tl_count(TL_LOST_GAP);
			http->state = TL_HTTP_LOST;
		}
	}
	sequence->next = segment->seq + segment->len;

	for (i = 0; i < TL_ROUNDS_MAX && off < end; i++) {
		int went = tl_is_in_fastcgi(flow) ?
				   tl_fastcgi_packets(skb, TL_GIVE_FLOW(flow, text),
						      off << 32 | end, direction) :
				   tl_packet_chunks(skb, TL_GIVE_FLOW(flow, text), off << 32 | end,
						    direction);

		if (!went)
			goto out;
		if (went < 0)
			break;
		off += (__u32)went;
	}
	if (off < end)
		tl_not_http(flow, text, http);
out:
	if (tl_is_in_fastcgi(flow) && http->state == TL_HTTP_LOST)
		tl_fastcgi_forgets(skb, direction);
}

#endif
