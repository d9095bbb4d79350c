package firewall

import (
	"context"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch calls changed as soon as it is watching, and after each change of the host's
// firewalls that may have removed rules of Open, such as a reload. It returns when ctx
// ends.
func Watch(ctx context.Context, changed func()) error {
	const group = unix.NFNLGRP_NFTABLES
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (group - 1)})
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	changed()
	pending := false // the transaction that is being reported may have removed rules
	for {
		messages, err := conn.Receive()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, unix.ENOBUFS) { // Messages were lost.
			pending, messages, err = true, []netlink.Message{{Header: netlink.Header{Type: endOfTransaction}}}, nil
		}
		if err != nil {
			return fmt.Errorf("watch nftables: %w", err)
		}
		for _, message := range messages {
			switch message.Header.Type {
			case newChain, removedTable, removedChain, removedRule:
				pending = true
			case endOfTransaction:
				if pending {
					changed()
				}
				pending = false
			}
		}
	}
}

// Types of nftables messages.
const (
	removedTable     = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE
	newChain         = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWCHAIN
	removedChain     = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELCHAIN
	removedRule      = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELRULE
	endOfTransaction = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
)
