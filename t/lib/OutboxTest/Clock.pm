
=pod

=head1 NAME

OutboxTest::Clock - a server whose time can be pushed on

=head1 SYNOPSIS

  my $node = new_outbox_node('main', start => 0);
  start_with_clock($node);
  push_clock($node, 3600);        # an hour later
  restart_with_clock($node);

The server's processes see the time of L<test/clock.c>; the bridge, the brokers
and the test itself see the system's.  What waits for so many milliseconds waits
as long as ever.

=cut

package OutboxTest::Clock;

use strict;
use warnings;

use Exporter 'import';
use OutboxTest::Guard qw(tool);

our @EXPORT = qw(
  start_with_clock
  restart_with_clock
  push_clock
);

my %ahead;

sub clock_file
{
	my ($node) = @_;
	return $node->basedir . '/clock';
}

sub write_clock
{
	my ($node) = @_;

	open(my $file, '+>>', clock_file($node)) or die "clock: $!";
	binmode($file);
	truncate($file, 0) if -s $file != 8;
	close($file);

	# in place: the file is mapped
	open($file, '+<', clock_file($node)) or die "clock: $!";
	binmode($file);
	syswrite($file, pack('q', int($ahead{ $node->name } * 1_000_000))) == 8
	  or die "clock: $!";
	close($file);
	return;
}

sub with_clock
{
	my ($node, $code) = @_;
	local $ENV{LD_PRELOAD} = tool('clock.so');
	local $ENV{OUTBOX_TEST_CLOCK} = clock_file($node);

	return $code->();
}

sub start_with_clock
{
	my ($node) = @_;

	$ahead{ $node->name } //= 0;
	write_clock($node);
	return with_clock($node, sub { $node->start });
}

sub restart_with_clock
{
	my ($node, $mode) = @_;

	$node->stop($mode // 'fast');
	return start_with_clock($node);
}

sub push_clock
{
	my ($node, $seconds) = @_;

	$ahead{ $node->name } += $seconds;
	return write_clock($node);
}

1;
