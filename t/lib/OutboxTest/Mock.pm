
=pod

=head1 NAME

OutboxTest::Mock - librdkafka's mock cluster, which fails on command

=head1 SYNOPSIS

  my $mock = OutboxTest::Mock->new(brokers => 1);
  $mock->start;
  $mock->create_topic('orders', 4);
  $mock->down;                          # closes connections, lets none in
  $mock->up;
  $mock->rtt(50);
  $mock->push_errors(0, 19, 19);        # the next two produce requests
  $mock->command('leader orders 0 -1');

It keeps nothing over a stop, takes another port at each start, and has no
admin requests, access rights or real transactions: for those, OutboxTest::Kafka.

=cut

package OutboxTest::Mock;

use strict;
use warnings;

use parent 'OutboxTest::Broker';

use Carp;
use IO::Handle;
use OutboxTest::Guard qw(tool spawn_guarded reap);
use Time::HiRes qw(time);

sub new
{
	my ($class, %opts) = @_;
	return bless { brokers => $opts{brokers} // 1, buffer => '' }, $class;
}

sub start
{
	my ($self) = @_;

	croak "the mock broker runs already" if defined $self->{pid};
	pipe(my $child_in, my $to) or die "pipe: $!";
	pipe(my $from, my $child_out) or die "pipe: $!";
	$to->autoflush(1);
	$self->{pid} = spawn_guarded(
		{ stdin => $child_in, stdout => $child_out },
		tool('mock_broker'), '--brokers', $self->{brokers});
	@$self{qw(to from buffer)} = ($to, $from, '');
	close($child_in);
	close($child_out);

	my $line = $self->_read_line;
	($self->{bootstrap}) = $line =~ /^bootstrap (\S+)/
	  or croak "the mock broker said: $line";
	return;
}

sub _read_line
{
	my ($self) = @_;
	my $deadline = time() + 30;

	while (1)
	{
		my $ready = '';

		return $1 if $self->{buffer} =~ s/^(.*)\n//;

		vec($ready, fileno($self->{from}), 1) = 1;
		croak "the mock broker does not answer"
		  if select($ready, undef, undef, $deadline - time()) <= 0;
		sysread($self->{from}, $self->{buffer}, 4096, length $self->{buffer})
		  or croak "the mock broker has ended";
	}
}

# Send one command; returns what follows "ok", and dies of an error.
sub command
{
	my ($self, $command) = @_;

	local $SIG{PIPE} = 'IGNORE';
	print { $self->{to} } "$command\n"
	  or croak "the mock broker has ended";
	my $answer = $self->_read_line;
	croak "mock broker: $command: $answer" unless $answer =~ /^ok ?(.*)/;
	return $1;
}

sub create_topic
{
	my ($self, $name, $partitions) = @_;

	$self->command("topic $name " . ($partitions // 1));
	return;
}

sub delete_topic { croak "the mock broker cannot delete topics"; }
sub add_partitions { croak "the mock broker cannot add partitions"; }
sub alter_config { croak "the mock broker has no topic settings"; }

# Of one broker, or of all.
sub down
{
	my ($self, @broker) = @_;
	return $self->command("down @broker");
}

sub up
{
	my ($self, @broker) = @_;
	return $self->command("up @broker");
}

sub rtt
{
	my ($self, $ms, @broker) = @_;
	return $self->command("rtt $ms @broker");
}

# push_errors($api_key, @codes): 0 is Produce, 1 Fetch, 3 Metadata, 22 InitProducerId.
sub push_errors
{
	my ($self, $api_key, @codes) = @_;
	return $self->command("push_errors $api_key @codes");
}

sub pid
{
	my ($self) = @_;
	return $self->{pid};
}

sub pause
{
	my ($self) = @_;

	kill('STOP', $self->{pid});
	return;
}

sub resume
{
	my ($self) = @_;

	kill('CONT', $self->{pid});
	return;
}

sub stop
{
	my ($self) = @_;

	return unless defined $self->{pid};
	reap($self->{pid}, 'KILL');
	$self->{pid} = undef;
	return;
}

sub kill9
{
	my ($self) = @_;
	return $self->stop;
}

1;
