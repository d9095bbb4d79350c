package layer

import (
	"context"
	"errors"
	"io"
)

// stream is the tar stream that archive/tar reads. It ends early with its context, so the
// context is checked between entries and within large files.
type stream struct {
	ctx context.Context
	r   io.Reader
	eof bool // r has reached its end
}

func (s *stream) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	if err != io.EOF {
		return n, err
	}
	if n > 0 { // the next call reports the end
		return n, nil
	}
	s.eof = true
	return 0, io.EOF
}

// finish reads everything after the end of the archive, which usually is padding with
// zeros. archive/tar stops reading after the two blocks of zeros at the end. If they are
// missing, it reads to the end of the stream, and cannot tell a stream that was cut
// between two entries from a complete archive.
func (s *stream) finish(unmarked bool) error {
	if s.eof && !unmarked {
		return errors.New("it ends without its end mark, so it has probably been truncated")
	}
	_, err := io.Copy(io.Discard, s)
	return err
}
