package process

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// EndLinesInLF has lines on the terminal of a process end in LF, not in CR LF, and keeps
// it so: every init sets up its terminal anew, as for a screen.
//
// The lock is that of ioctl_tty(2), which only root of the host has the right to set or
// take away. It lasts until the terminal is hung up, which a guest may do.
func (p Process) EndLinesInLF() error {
	terminal, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/1", p.PID), os.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open the console: %w", err)
	}
	defer terminal.Close()
	fd := int(terminal.Fd())
	settings, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("read the settings of the console: %w", err)
	}
	settings.Oflag &^= unix.ONLCR
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, settings); err != nil {
		return fmt.Errorf("change the settings of the console: %w", err)
	}
	if err := unix.IoctlSetTermios(fd, unix.TIOCSLCKTRMIOS, &unix.Termios{Oflag: unix.ONLCR}); err != nil {
		return fmt.Errorf("lock the settings of the console: %w", err)
	}
	return nil
}
