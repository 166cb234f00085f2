/* What the examples need before libtrafficllm comes into play, and every host has already: headers of packets, and a table of flows.
 *
 * This file is C, and C++ too. It knows Ethernet (with VLAN tags), Linux cooked captures and bare IP; TCP, UDP and ICMP over IPv4 and IPv6.
 * The table has no timeouts: two connections with the same ports are one flow here. */
#ifndef PACKETS_H
#define PACKETS_H

#include <arpa/inet.h>
#include <pcap/pcap.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <trafficllm.h>

/* One flow of the table. */
struct flow {
    struct flow *next;
    tllm_flow_info info; /* as of its first packet */
    tllm_flow *handle;
    uint64_t packets;
    uint64_t last_ns; /* time of its last packet */
    int submitted;
};

enum { FLOW_BUCKETS = 4096 };
typedef struct flow *flow_table[FLOW_BUCKETS];

static inline uint16_t read_u16(const uint8_t *bytes) { return (uint16_t)(bytes[0] << 8 | bytes[1]); }

/* Place of the IP header, or -1 if there is none. */
static inline int find_ip(int link_type, const uint8_t *bytes, size_t size) {
    size_t place, type_at;
    switch (link_type) {
    case DLT_RAW: return 0;
    case DLT_EN10MB: place = 14, type_at = 12; break;
    case DLT_LINUX_SLL: place = 16, type_at = 14; break;
    case DLT_LINUX_SLL2: place = 20, type_at = 0; break;
    default: return -1;
    }
    if (size < place) return -1;
    uint16_t type = read_u16(bytes + type_at);
    while ((type == 0x8100 || type == 0x88a8) && size >= place + 4) { /* a VLAN tag, and the type of what follows it */
        type = read_u16(bytes + place + 2);
        place += 4;
    }
    return type == 0x0800 || type == 0x86dd ? (int)place : -1;
}

/* Fills `info` with who sent the packet to whom, and `packet` with all but its direction; both were prepared by their tllm_*_init. 0 for
 * a packet that belongs to no flow. Lengths are those of the headers: what the capture cut off is not in `payload_size`. */
static inline int decode(pcap_t *capture, const struct pcap_pkthdr *head, const uint8_t *bytes, tllm_flow_info *info, tllm_packet *packet) {
    int place = find_ip(pcap_datalink(capture), bytes, head->caplen);
    if (place < 0) return 0;
    const uint8_t *ip = bytes + place;
    size_t captured = head->caplen - (size_t)place, header, length;
    memset(info->initiator, 0, sizeof info->initiator);
    memset(info->responder, 0, sizeof info->responder);
    if (captured >= 20 && ip[0] >> 4 == 4) {
        header = (size_t)(ip[0] & 15) * 4;
        length = read_u16(ip + 2);
        if (header < 20 || (read_u16(ip + 6) & 0x1fff) != 0) return 0; /* a later fragment has no ports */
        info->ip_version = 4;
        info->protocol = ip[9];
        memcpy(info->initiator, ip + 12, 4);
        memcpy(info->responder, ip + 16, 4);
    } else if (captured >= 40 && ip[0] >> 4 == 6) {
        header = 40;
        length = 40 + (size_t)read_u16(ip + 4);
        info->ip_version = 6;
        info->protocol = ip[6];
        memcpy(info->initiator, ip + 8, 16);
        memcpy(info->responder, ip + 24, 16);
        while ((info->protocol == 0 || info->protocol == 43 || info->protocol == 60) && captured >= header + 8) { /* extension headers */
            info->protocol = ip[header];
            header += (size_t)(ip[header + 1] + 1) * 8;
        }
    } else {
        return 0;
    }
    if (captured > length) captured = length; /* Ethernet pads short packets */
    if (captured < header) return 0;
    const uint8_t *transport = ip + header;
    size_t own = 8; /* bytes of a UDP or ICMP header */
    if (info->protocol == IPPROTO_TCP || info->protocol == IPPROTO_UDP) {
        if (captured < header + (info->protocol == IPPROTO_TCP ? 20 : 8)) return 0;
        if (info->protocol == IPPROTO_TCP) own = (size_t)(transport[12] >> 4) * 4;
        info->initiator_port = read_u16(transport);
        info->responder_port = read_u16(transport + 2);
    } else if (info->protocol == IPPROTO_ICMP || info->protocol == IPPROTO_ICMPV6) {
        info->initiator_port = info->responder_port = 0;
    } else {
        return 0;
    }
    if (length < header + own) return 0;
    packet->tcp_flags = info->protocol == IPPROTO_TCP ? transport[13] : 0;
    uint64_t unit_ns = pcap_get_tstamp_precision(capture) == PCAP_TSTAMP_PRECISION_NANO ? 1 : 1000;
    packet->time_ns = (uint64_t)head->ts.tv_sec * 1000000000u + (uint64_t)head->ts.tv_usec * unit_ns;
    packet->ip_bytes = (uint32_t)length;
    packet->payload_bytes = (uint32_t)(length - header - own);
    packet->payload_size = captured > header + own ? captured - header - own : 0;
    packet->payload = packet->payload_size > 0 ? transport + own : NULL;
    return 1;
}

/* Finds the flow of a packet, or makes it with this as its first, and says in `direction` who sent it. NULL where there is no memory, or
 * no handle: then tllm_last_error says why. */
static inline struct flow *find_flow(flow_table table, const tllm_engine *engine, const tllm_flow_info *from, uint8_t *direction) {
    uint32_t hash = from->protocol + (uint32_t)from->initiator_port + from->responder_port; /* the same for both directions */
    for (size_t i = 0; i < 16; i++) hash += (uint32_t)(from->initiator[i] + from->responder[i]) * (uint32_t)(2 * i + 1) * 31;
    struct flow **bucket = &table[hash % FLOW_BUCKETS];
    for (struct flow *flow = *bucket; flow != NULL; flow = flow->next) {
        const tllm_flow_info *own = &flow->info;
        if (own->protocol != from->protocol || own->ip_version != from->ip_version) continue;
        if (own->initiator_port == from->initiator_port && own->responder_port == from->responder_port
            && memcmp(own->initiator, from->initiator, 16) == 0 && memcmp(own->responder, from->responder, 16) == 0) {
            *direction = TLLM_FROM_INITIATOR;
            return flow;
        }
        if (own->initiator_port == from->responder_port && own->responder_port == from->initiator_port
            && memcmp(own->initiator, from->responder, 16) == 0 && memcmp(own->responder, from->initiator, 16) == 0) {
            *direction = TLLM_FROM_RESPONDER;
            return flow;
        }
    }
    struct flow *flow = (struct flow *)calloc(1, sizeof *flow);
    if (flow == NULL) return NULL;
    if (tllm_flow_new(engine, from, &flow->handle) != TLLM_OK) {
        free(flow);
        return NULL;
    }
    flow->info = *from;
    flow->next = *bucket;
    *bucket = flow;
    *direction = TLLM_FROM_INITIATOR;
    return flow;
}

/* Frees the flows that are `idle_ns` or longer without a packet; UINT64_MAX as `now_ns` frees all. What the engine still judges of them is
 * dropped: no verdict comes for a flow that was freed. */
static inline void free_flows(flow_table table, uint64_t now_ns, uint64_t idle_ns) {
    for (size_t bucket = 0; bucket < FLOW_BUCKETS; bucket++) {
        for (struct flow **place = &table[bucket]; *place != NULL;) {
            struct flow *flow = *place;
            if (now_ns < flow->last_ns || now_ns - flow->last_ns < idle_ns) {
                place = &flow->next;
                continue;
            }
            *place = flow->next;
            tllm_flow_free(flow->handle);
            free(flow);
        }
    }
}

/* "tcp 10.0.0.1 40001 10.0.0.2 443" */
static inline void print_flow(const tllm_flow_info *info) {
    char initiator[INET6_ADDRSTRLEN], responder[INET6_ADDRSTRLEN];
    int family = info->ip_version == 6 ? AF_INET6 : AF_INET;
    inet_ntop(family, info->initiator, initiator, sizeof initiator);
    inet_ntop(family, info->responder, responder, sizeof responder);
    const char *name = info->protocol == IPPROTO_TCP ? "tcp" : info->protocol == IPPROTO_UDP ? "udp" : info->ip_version == 6 ? "icmpv6" : "icmp";
    printf("%s %s %u %s %u", name, initiator, info->initiator_port, responder, info->responder_port);
}

#endif
