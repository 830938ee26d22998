/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * go/registers.h - the registers of Go's functions where they begin (cmd/compile/abi-internal.md).
 */
#ifndef THROUGHLINE_GO_REGISTERS_H
#define THROUGHLINE_GO_REGISTERS_H

#include "core/registers.h"

#if defined(__TARGET_ARCH_x86)
#define TL_GO_ARG1(ctx) ((ctx)->ax)
#define TL_GO_ARG2(ctx) ((ctx)->bx)
#define TL_GO_ARG3(ctx) ((ctx)->cx)
#define TL_GO_ARG4(ctx) ((ctx)->di)
#define TL_GO_G(ctx) ((ctx)->r14)
#define TL_FLAGS_CF 0x01
#define TL_FLAGS_ZF 0x40
/* Is the branch of the stack check taken (jbe)? */
#define TL_GO_GROWS(ctx) ((ctx)->flags & (TL_FLAGS_CF | TL_FLAGS_ZF))
#else
#define TL_GO_ARG1(ctx) ((ctx)->regs[0])
#define TL_GO_ARG2(ctx) ((ctx)->regs[1])
#define TL_GO_ARG3(ctx) ((ctx)->regs[2])
#define TL_GO_ARG4(ctx) ((ctx)->regs[3])
#define TL_GO_G(ctx) ((ctx)->regs[28])
#define TL_PSTATE_Z (1UL << 30)
#define TL_PSTATE_C (1UL << 29)
/* Is the branch of the stack check taken (b.ls)? */
#define TL_GO_GROWS(ctx) (((ctx)->pstate & (TL_PSTATE_Z | TL_PSTATE_C)) != TL_PSTATE_C)
#endif

#endif
