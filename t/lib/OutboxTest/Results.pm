
=pod

=head1 NAME

OutboxTest::Results - what tests of result topics share

=head1 SYNOPSIS

  my $test = OutboxTest::Results->new($node, $kafka);
  my ($topic, $results) = $test->new_topics(partitions => 2);
  my @ids = $test->messages($topic, 2);
  $kafka->produce($results, { key => $ids[0], value => 'SUCCESS' });
  $test->counts_are($results, { applied => 1 }, 'it is applied');

=cut

package OutboxTest::Results;

use strict;
use warnings;

use OutboxTest::Cluster;
use Test::More;

my @kinds = qw(applied repeated contrary unknown bad);
my $number = 0;

sub new
{
	my ($class, $node, $kafka) = @_;
	return bless { node => $node, kafka => $kafka }, $class;
}

# A name that no topic has yet
sub new_name
{
	my ($self, $name) = @_;
	return "$name-" . $number++;
}

# A topic and its result topic, nobody else's.  Options: partitions, of the
# latter; rest: further arguments of set_topic.
sub new_topics
{
	my ($self, %options) = @_;
	my ($topic, $results) = map { $self->new_name($_) } qw(orders results);

	$self->{kafka}->create_topic($topic, 1);
	$self->{kafka}->create_topic($results, $options{partitions} // 1);
	$self->set_topic($topic, $results, $options{rest});
	return ($topic, $results);
}

sub set_topic
{
	my ($self, $topic, $results, $rest) = @_;

	$results = defined $results ? "'$results'" : 'NULL';
	$self->query("SELECT outbox.set_topic('$topic', $results" . ($rest // '') . ')');
	return;
}

sub query
{
	my ($self, $sql) = @_;
	return $self->{node}->safe_psql('postgres', $sql);
}

# Messages of a topic, published: a list of their ids
sub messages
{
	my ($self, $topic, $n) = @_;
	my @ids = split /\n/,
	  $self->query("SELECT outbox.send('$topic', 'm'::text) FROM generate_series(1, $n)");

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$self->wait_for(
		"SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status = 'NEW'", 0);
	return @ids;
}

sub wait_for
{
	my ($self, $sql, $expected) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($self->{node}, 'postgres', $sql, $expected);
}

# Wait until so many records of a result topic were handled, and compare what
# became of them; what isn't named is expected to be 0.
sub counts_are
{
	my ($self, $results, $expected, $name) = @_;
	my %expected = ((map { $_ => 0 } @kinds), %$expected);
	my $total = 0;

	$total += $_ foreach (values %expected);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$self->wait_for(
		'SELECT coalesce(sum(applied + repeated + contrary + unknown + bad), 0)'
		  . " >= $total FROM outbox.consumer_offset WHERE topic = '$results'", 't');
	is_deeply($self->counts($results), \%expected, $name);
	return;
}

sub counts
{
	my ($self, $results) = @_;
	my %counts;

	@counts{@kinds} = split /\|/, $self->query(
		'SELECT ' . join(', ', map { "coalesce(results_$_, 0)" } @kinds)
		  . " FROM outbox.topic WHERE topic = '$results'");
	return \%counts;
}

# How often a position in the topic was lost
sub lost
{
	my ($self, $results) = @_;
	return $self->query("SELECT positions_lost FROM outbox.topic WHERE topic = '$results'");
}

# status, result and error of a message
sub state_is
{
	my ($self, $id, $expected, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is( $self->query("SELECT status, result, error FROM outbox.message WHERE id = '$id'"),
		$expected, $name);
	return;
}

# Wait until all of these messages are confirmed
sub all_confirmed
{
	my ($self, $name, @ids) = @_;
	my $list = join(', ', map { "'$_'" } @ids);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok( $self->wait_for(
			"SELECT count(*) FROM outbox.message WHERE status = 'CONFIRMED' AND id IN ($list)",
			scalar @ids), $name);
	return;
}

# What outbox.worker says of the consumer
sub wait_for_state
{
	my ($self, $pattern) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $self->wait_for("SELECT state FROM outbox.worker WHERE kind = 'consumer'", $pattern);
}

1;
